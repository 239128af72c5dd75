"""From words to the tokens of a Whisper model, and the tokens that come before and after them.

Knows the tokenizer's files and languages; knows nothing of audio. A tokenizer's own code is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tokenizers
from tokenizers import models, pre_tokenizers

from align_server.engines.engine import EngineLoadError
from align_server.engines.files import read_json
from align_server.engines.whisper.languages import UNSPACED, code

if TYPE_CHECKING:
    from pathlib import Path

BEGIN: Final = "<|startoftranscript|>"
TRANSCRIBE: Final = "<|transcribe|>"
NO_TIMES: Final = "<|notimestamps|>"
END: Final = "<|endoftext|>"
# Stands for an unknown sound. With one word of each of 38 sentences unknown, its neighbours' edges move by 55 ms in the
# mean; by 198 ms with nothing there, and by 59 to 120 ms with an ellipsis, a dash, "um" or "[inaudible]".
SLOT: Final = "..."


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Byte-level BPE, which can spell any text, and the model's special tokens. Safe to use from several threads.

    `special` is empty of languages where the model knows English alone.
    """

    bpe: tokenizers.Tokenizer
    special: dict[str, int]
    multilingual: bool

    @classmethod
    def read(cls, folder: Path, size: int, *, multilingual: bool) -> Tokenizer:
        """Read tokenizer.json, or vocab.json, merges.txt and added_tokens.json, of a model with `size` tokens.

        Raises EngineLoadError.
        """
        vocabulary, merges, special = _whole(folder) if (folder / "tokenizer.json").is_file() else _parts(folder)
        needed = [BEGIN, END, NO_TIMES, *((TRANSCRIBE, "<|en|>") if multilingual else ())]
        if missing := [token for token in needed if token not in special]:
            raise EngineLoadError(
                f"the tokenizer in {folder} lacks {', '.join(missing)}, which Whisper needs; copy the model's own"
            )
        if (most := max(*vocabulary.values(), *(special[token] for token in needed))) >= size:
            raise EngineLoadError(
                f"the tokenizer in {folder} has token {most}, but the model only {size}; copy the model's own"
            )
        try:
            bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # the class that tokenizers raises
            raise EngineLoadError(
                f"the merges of the tokenizer in {folder} do not fit its vocabulary ({error})"
            ) from error
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return cls(bpe, {token: i for token, i in special.items() if i < size}, multilingual)

    @property
    def end(self) -> int:
        """The token after the last word; tokens below it are text."""
        return self.special[END]

    def knows(self, language: str) -> bool:
        """Whether the model has that ISO 639-3 language; the empty one stands for its first."""
        if not language or not self.multilingual:
            return language in {"", "eng"}
        return f"<|{code(language)}|>" in self.special

    def prompt(self, language: str) -> list[int]:
        """The tokens before the words of a segment in that ISO 639-3 language, which the model knows."""
        if not self.multilingual:
            return [self.special[BEGIN], self.special[NO_TIMES]]
        spoken = f"<|{code(language or 'eng')}|>"
        return [self.special[token] for token in (BEGIN, spoken, TRANSCRIBE, NO_TIMES)]

    def spell(self, word: str, language: str, before: str | None) -> list[int]:
        """The tokens of a word after one in the language `before`, None at the start; none where it has no text.

        A space is part of the word after it, and stands before the first word too; between words of languages that
        are written without spaces, and before the first of them, there is none.
        """
        text = word.strip()
        joined = language in UNSPACED and (before is None or before in UNSPACED)
        encode: Any = self.bpe.encode  # has types that mypy does not follow
        tokens: list[int] = encode(text if joined else f" {text}").ids if text else []
        return tokens


def _whole(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges and special tokens of a tokenizer.json. Raises EngineLoadError."""
    path = folder / "tokenizer.json"
    value = read_json(path)
    try:
        model = value["model"]
        if model["type"] != "BPE":
            raise EngineLoadError(f"{path} is a {model['type']} tokenizer; Whisper's is BPE: copy the model's own")
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merges = [(left, right) for left, right in pairs]
        special = {token["content"]: int(token["id"]) for token in value["added_tokens"]}
        return _text(model["vocab"], special), merges, special
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineLoadError(
            f"{path} is not a tokenizer that transformers wrote ({error!r}); copy it again"
        ) from error


def _parts(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """The same of vocab.json, merges.txt and added_tokens.json. Raises EngineLoadError."""
    without = "without it, or a tokenizer.json, words have no tokens; copy the tokenizer into the folder"
    found = read_json(folder / "vocab.json", without)
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise EngineLoadError(f"{folder} has no {path.name}: {without}") from error
    except (OSError, ValueError) as error:
        raise EngineLoadError(f"{path} cannot be read ({error}); copy it again") from error
    pairs = (line.split(" ") for line in lines if not line.startswith("#version"))
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    special = {key: i for key, i in found.items() if key.startswith("<|")} | read_json(folder / "added_tokens.json")
    return _text(found, special), merges, special


def _text(vocabulary: dict[str, int], special: dict[str, int]) -> dict[str, int]:
    return {token: i for token, i in vocabulary.items() if token not in special}
