"""A Whisper checkpoint in a local folder: what it is, whether it is whole, and what identifies it.

Reads the small files and hashes the large ones; imports neither torch nor transformers, so that listing is quick.
The format is that which Hugging Face transformers writes with `save_pretrained`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.ctc import checkpoint as ctc
from align_server.engines.ctc.checkpoint import Description
from align_server.engines.engine import EngineLoadError, Progress
from align_server.engines.files import read_config, read_json, verify, weight_files
from align_server.engines.whisper import openai
from align_server.engines.whisper.languages import languages
from align_server.engines.whisper.size import Dimensions, Head

if TYPE_CHECKING:
    from pathlib import Path

DECODER_VERSION: Final = 1  # raised with every change that can change a time or a score

SETTINGS: Final = (  # of those that are there, times depend on all
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
PICKLED: Final = "only OpenAI's own files are, as whisper:FILE.pt; convert others with transformers"
MULTILINGUAL: Final = 51865  # tokens that a multilingual model has at least, where its files do not say what it is


def describe(path: Path) -> Description:
    """What can be said of the checkpoint at `path`, a folder or a .pt, without reading its weights; does not raise.

    Of a .pt only the name and the size are looked at.
    """
    if path.suffix == openai.SUFFIX:
        size = path.stat().st_size if path.is_file() else 0
        return Description(languages(None if path.stem.endswith(".en") else 99), "MIT", size)
    found = ctc.describe(path)
    try:
        spoken = Checkpoint.read(path).languages
    except (EngineLoadError, OSError):
        spoken = ()
    return Description(spoken, found.licence, found.size_bytes)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's small files, read and checked.

    `heads` are those of the decoder that follow the audio, `never` and `never_first` the tokens that are not to be
    found at all and at the start, None where the files do not say. `weights` are the files that hold them, `others` the
    further files that times depend on.
    """

    folder: Path
    size: Dimensions
    heads: tuple[Head, ...]
    multilingual: bool
    never: tuple[int, ...] | None
    never_first: tuple[int, ...] | None
    weights: tuple[Path, ...]
    others: tuple[Path, ...]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read the checkpoint in `folder`, its weights aside. Raises EngineLoadError."""
        path = folder / "config.json"
        config = read_config(folder, "whisper:FOLDER")
        _check_architecture(path, config)
        generation = read_json(folder / "generation_config.json")
        try:
            size = _dimensions(config)
            heads = tuple(sorted((int(layer), int(head)) for layer, head in generation.get("alignment_heads") or ()))
            never, never_first = (_tokens(generation, key) for key in ("suppress_tokens", "begin_suppress_tokens"))
        except (KeyError, TypeError, ValueError) as error:
            raise EngineLoadError(
                f"{path} does not describe the model ({error!r}); save the checkpoint again with save_pretrained"
            ) from error
        # The second half of the decoder, as OpenAI has it for models whose heads nobody chose.
        heads = heads or tuple(
            (layer, head)
            for layer in range(size.decoder_layers // 2, size.decoder_layers)
            for head in range(size.decoder_heads)
        )
        if wrong := [h for h in heads if not (0 <= h[0] < size.decoder_layers and 0 <= h[1] < size.decoder_heads)]:
            raise EngineLoadError(
                f"{folder / 'generation_config.json'} names {wrong[0]} as one of the alignment_heads, but the decoder "
                f"has {size.decoder_layers} layers of {size.decoder_heads} heads; copy it from the model's own folder"
            )
        return cls(
            folder=folder,
            size=size,
            heads=heads,
            multilingual=bool(generation.get("is_multilingual", size.vocabulary >= MULTILINGUAL)),
            never=never,
            never_first=never_first,
            weights=weight_files(folder, PICKLED),
            others=tuple(path for name in SETTINGS if (path := folder / name).is_file()),
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-3, the default first."""
        # All but 51,765 tokens of text, of time and of command are languages; models with few tokens are tests.
        return languages(max(99, self.size.vocabulary - 51766) if self.multilingual else None)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(path.stat().st_size for path in self.weights)

    def verify(self, precision: str, progress: Progress) -> str:
        """Read every file once: check those that SHA256SUMS lists, and return the revision, 12 hex digits.

        Equal revisions have the same weights, settings, tokenizer, precision and decoder. Raises EngineLoadError.
        """
        parts = verify(self.folder, (*self.others, *self.weights), progress)
        found = hashlib.sha256(parts.encode()).hexdigest()
        return hashlib.sha256(f"decoder {DECODER_VERSION} {precision}\n{found}".encode()).hexdigest()[:12]


def _check_architecture(path: Path, config: dict[str, Any]) -> None:
    architecture = ", ".join(config.get("architectures") or ()) or "no architecture"
    if config.get("model_type") != "whisper" or architecture != "WhisperForConditionalGeneration":
        raise EngineLoadError(
            f"{path} has model type {config.get('model_type')!r} and names {architecture}; "
            "only WhisperForConditionalGeneration can align as whisper:, other checkpoints may as ctc:"
        )
    if (activation := config.get("activation_function", "gelu")) != "gelu" or config.get("scale_embedding"):
        raise EngineLoadError(
            f"{path} has activation {activation!r} and scale_embedding {config.get('scale_embedding')!r}; "
            "only gelu and false, which every published Whisper has, are supported"
        )


def _tokens(generation: dict[str, Any], key: str) -> tuple[int, ...] | None:
    found = generation.get(key)
    return None if not found else tuple(int(token) for token in found if int(token) >= 0)


def _dimensions(config: dict[str, Any]) -> Dimensions:
    width = int(config["d_model"])
    size = Dimensions(
        bands=int(config["num_mel_bins"]),
        frames=int(config["max_source_positions"]),
        tokens=int(config["max_target_positions"]),
        vocabulary=int(config["vocab_size"]),
        width=width,
        encoder_layers=int(config["encoder_layers"]),
        encoder_heads=int(config["encoder_attention_heads"]),
        encoder_hidden=int(config["encoder_ffn_dim"]),
        decoder_layers=int(config["decoder_layers"]),
        decoder_heads=int(config["decoder_attention_heads"]),
        decoder_hidden=int(config["decoder_ffn_dim"]),
    )
    if width % size.encoder_heads or width % size.decoder_heads:
        raise ValueError(f"d_model is {width}, which the heads do not divide")
    return size
