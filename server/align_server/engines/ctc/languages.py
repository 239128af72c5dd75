"""The adapters of a checkpoint with many languages: which one a segment needs, and those used last in memory.

Knows files of adapters, and words only by their languages and letters; what becomes of tensors is its owner's affair.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from align_server.engines.ctc.adapters import HELD
from align_server.engines.ctc.text import Vocabulary, special_tokens
from align_server.engines.engine import EngineLoadError, WordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from align_server.engines.ctc.adapters import Adapters
    from align_server.engines.engine import Word

    Make = Callable[[Mapping[str, torch.Tensor]], Any]

HEAD: Final = "lm_head.weight"  # a row for each token
_AGAIN: Final = "copy or download it again"


class Languages:
    """The languages of one model, by the names of their adapters. Safe to use from several threads.

    `config` is the model's config.json. Every file is looked into: raises EngineLoadError for an adapter that is
    damaged, or fits neither the model nor its vocabulary. Adapters and vocabularies are read when they are needed; the
    HELD used last are kept. What an adapter gives does not depend on that: a file is read again only as long as it is
    what it was when the model was loaded.
    """

    def __init__(self, adapters: Adapters, config: Mapping[str, Any]) -> None:
        self._adapters = adapters
        self._special = special_tokens(adapters.folder)
        self._make: Make | None = None
        self._sums: Mapping[str, str] = {}
        shapes = _shapes(config)
        self._sizes = {name: _size(adapters.path(name), shapes) for name in adapters.vocabularies}
        for name in adapters.vocabularies:
            self._read_vocabulary(name)
        self.vocabulary = functools.lru_cache(HELD)(self._read_vocabulary)
        self.adapter = functools.lru_cache(HELD)(self._read_adapter)

    def open(self, sums: Mapping[str, str], make: Make) -> None:
        """Serve a model, with files whose SHA-256, by their names, are `sums`.

        `make` gives what the model needs to know a language, of tensors in fp32 by their names in transformers.
        """
        self.close()
        self._sums, self._make = sums, make

    def close(self) -> None:
        """Let go of the adapters, and of the model."""
        self._make = None
        self.adapter.cache_clear()

    def size(self, name: str) -> int:
        """How many tokens an adapter has."""
        return self._sizes[name]

    def knows(self, language: str) -> bool:
        """Whether there is an adapter for a word's language."""
        return bool(self._adapters.names(language))

    def of(self, words: Sequence[Word]) -> str:
        """The adapter for the language that most words are in, of those that have one; the first of several such.

        Where a language has adapters for several scripts or dialects, it is the one that spells most of its words.
        Without a word whose language has one, it is the default.
        """
        spoken = [(word, self._adapters.names(word.language)) for word in words if word.kind is WordKind.WORD]
        known = Counter(names for _, names in spoken if names)
        best = known.most_common(1)[0][0] if known else self._adapters.names("")
        if len(best) == 1:
            return best[0]
        texts = [word.text for word, names in spoken if names == best]
        return max(best, key=lambda name: sum(self._spells(name, text) for text in texts))

    def _spells(self, name: str, text: str) -> bool:
        tokens, unknown = self.vocabulary(name).spell(text)
        return bool(tokens) and not unknown

    def _read_vocabulary(self, name: str) -> Vocabulary:
        """The letters of a language."""
        tokens, size = self._adapters.vocabularies[name], self._sizes[name]
        where = f"{self._adapters.folder / 'vocab.json'}, in {name!r},"
        most = max((token for token in tokens.values() if isinstance(token, int)), default=-1)
        if most >= size:
            raise EngineLoadError(
                f"{where} has tokens up to {most}, and {self._adapters.path(name).name} only {size} tokens: they are "
                "not of the same model; copy or download both again"
            )
        return Vocabulary.of(tokens, size, self._special, where)

    def _read_adapter(self, name: str) -> Any:
        """What the model needs to know a language. Raises EngineLoadError where the file is another than at loading."""
        if self._make is None:
            raise RuntimeError("Languages.adapter was called before open")
        path = self._adapters.path(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineLoadError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error
        is_same = hashlib.sha256(content).hexdigest() == self._sums[path.name]
        tensors = load(content) if is_same else {}
        if not is_same or len(tensors[HEAD]) != self._sizes[name]:  # looked into before it was hashed
            raise EngineLoadError(f"{path} has changed since the model was loaded; unload the model and load it again")
        return self._make(tensors)


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors by their names, with 0 for the number of tokens."""
    width, inner = config["hidden_size"], config["adapter_attn_dim"]
    parts = {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "linear_1.weight": (inner, width),
        "linear_1.bias": (inner,),
        "linear_2.weight": (width, inner),
        "linear_2.bias": (width,),
    }
    layers = [f"{config['model_type']}.encoder.layers.{i}.adapter_layer" for i in range(config["num_hidden_layers"])]
    steps = {f"{layer}.{part}": shape for layer in layers for part, shape in parts.items()}
    return steps | {HEAD: (0, width), "lm_head.bias": (0,)}


def _size(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many tokens an adapter has. Raises EngineLoadError where its tensors are not of those names and `shapes`."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError) as error:
        raise EngineLoadError(f"{path} is damaged or cut off ({error}); {_AGAIN}") from error
    size = int((found.get(HEAD) or (0,))[0])
    fault = ""
    if odd := sorted(shapes.keys() ^ found.keys()):
        fault = f"{'lacks' if odd[0] in shapes else 'has'} {odd[0]}"
    for name, shape in shapes.items():
        expected = (shape[0] or size, *shape[1:])
        if not fault and found[name] != expected:
            fault = f"has {name} of shape {list(found[name])}, not {list(expected)}"
    if fault:
        raise EngineLoadError(
            f"{path} {fault}, and so does not fit config.json; copy or download the adapter that was made for the model"
        )
    return size
