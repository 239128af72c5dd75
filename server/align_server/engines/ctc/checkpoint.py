"""A CTC checkpoint in a local folder: what it is, whether it is whole, and what identifies it.

Reads the small files and hashes the large ones; imports neither torch nor transformers, so that listing is quick.
The formats are those that Hugging Face transformers writes with `save_pretrained`, and that of `sha256sum`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.ctc.adapters import Adapters
from align_server.engines.engine import SAMPLE_RATE, EngineLoadError, Progress
from align_server.engines.files import WEIGHTS, read_config, read_json, verify, weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DECODER_VERSION: Final = 3  # raised with every change that can change a time or a score

SETTINGS: Final = (  # of those that are there, times depend on all
    "config.json",
    "vocab.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)
BERT: Final = "wav2vec2-bert"  # reads spectra; the first layers of all others are convolutions over samples
MODEL_TYPES: Final = (
    "data2vec-audio",
    "hubert",
    "sew",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    BERT,
    "wav2vec2-conformer",
    "wavlm",
)
WINDOW, HOP = 400, 160  # samples of a spectrum, and from one to the next
# Those that read nothing of padding, if their front end has layer norm: what convolves over frames is masked.
PADDABLE: Final = frozenset({"hubert", "unispeech", "unispeech-sat", "wav2vec2"})

# Of the operations a second that everything else reaches. Measured in float32 on one core with 95M weights, where
# `balance` then foretells the time of 1 to 40 s of audio within 4 %.
ATTENTION_RATE: Final = 0.7

_LICENCE: Final = re.compile(r"^license:[ \t]*(?:\n?[ \t]*- )?[ \t]*['\"]?(?P<licence>[^'\"\n#]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Description:
    """What a user chooses a checkpoint by: ISO 639-3 languages, its licence, and the bytes of its weights.

    `languages` is empty where there are no adapters for any, `licence` is "" and `size_bytes` 0 where the folder does
    not say. Of adapters `size_bytes` counts those that will be in memory at most.
    """

    languages: tuple[str, ...]
    licence: str
    size_bytes: int


def describe(folder: Path, languages: Sequence[str] = ()) -> Description:
    """What can be said of the checkpoint in `folder` without reading its weights; does not raise.

    `languages` are those whose adapters are wanted; all that are there, where none is named.
    """
    adapters = None
    size = 0
    with contextlib.suppress(EngineLoadError, OSError):
        size = sum(path.stat().st_size for path in weight_files(folder, _convert(folder)))
        adapters = Adapters.find(folder, read_config(folder, "ctc:FOLDER"), languages)
        size += adapters.held_bytes if adapters else 0
    return Description(adapters.codes if adapters else (), _licence(folder / "README.md"), size)


def _licence(card: Path) -> str:
    """The licence that a model card's front matter names, or ""."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    _, opened, rest = text.partition("---\n")
    matter, closed, _ = rest.partition("\n---")
    found = _LICENCE.search(matter) if opened and closed and text.startswith("---\n") else None
    return found["licence"].strip() if found else ""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """The convolutions that make frames of samples; each layer's kernel and stride in samples of its input.

    So it is where spectra are: they are taken of windows, and several are put together to one frame. A convolution that
    pads its input on both sides counts with a kernel that is shorter by as much: it has as many frames, in the same
    places.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def field(self) -> int:
        """Samples that one frame sees."""
        return self.samples(1)

    def frames(self, samples: int) -> int:
        """How many frames so many samples make."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def samples(self, frames: int) -> int:
        """The fewest samples that make so many frames."""
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            frames = (frames - 1) * stride + kernel
        return frames

    @property
    def flops(self) -> int:
        """Floating-point operations for one frame."""
        total, inputs = 0, 1
        for i, (kernel, outputs) in enumerate(zip(self.kernels, self.channels, strict=True)):
            total += 2 * kernel * inputs * outputs * math.prod(self.strides[i + 1 :])
            inputs = outputs
        return total


@dataclass(frozen=True, slots=True)
class Spectra:
    """What a model that reads spectra is given: `stacked` of them, of `bands` each, for a frame."""

    bands: int
    stacked: int

    @property
    def width(self) -> int:
        """Values for a frame."""
        return self.bands * self.stacked


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's small files, read and checked.

    `normalise`: whether audio is brought to zero mean and unit variance. `spectra` are what the model reads instead of
    audio, if it does. `paddable`: whether padding, masked, changes nothing. `balance` is the number of frames at which
    attention takes as long as everything else. `config` is its config.json, `weights` are the files that hold them,
    `adapters` those of languages, if it has any, and `others` the further files that times depend on.
    """

    folder: Path
    front_end: FrontEnd
    vocab_size: int
    normalise: bool
    spectra: Spectra | None
    paddable: bool
    balance: float
    config: dict[str, Any]
    weights: tuple[Path, ...]
    adapters: Adapters | None
    others: tuple[Path, ...]

    @classmethod
    def read(cls, folder: Path, languages: Sequence[str] = ()) -> Checkpoint:
        """Read the checkpoint in `folder`, its weights aside, with the adapters for `languages`, or all that are there.

        Raises EngineLoadError.
        """
        config = read_config(folder, "ctc:FOLDER")
        _check_architecture(folder / "config.json", config)
        extractor = _extractor(folder)
        try:
            spectra = _spectra(extractor) if config["model_type"] == BERT else None
            front_end = _spectral(config, spectra) if spectra else _convolutional(config)
            vocab_size = int(config["vocab_size"])
            width, layers, inner = (config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
            frames = balance(front_end, width, layers, inner)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise EngineLoadError(
                f"{folder / 'config.json'} does not describe the model ({error!r}); "
                "save the checkpoint again with save_pretrained"
            ) from error
        return cls(
            folder=folder,
            front_end=front_end,
            vocab_size=vocab_size,
            normalise=bool(extractor.get("do_normalize", True)),  # as the feature extractor has it
            spectra=spectra,
            paddable=_paddable(config),
            balance=frames,
            config=config,
            weights=weight_files(folder, _convert(folder)),
            adapters=Adapters.find(folder, config, languages),
            others=tuple(path for name in SETTINGS if (path := folder / name).is_file()),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk, and of as many adapters, the largest, as are in memory at a time."""
        return sum(path.stat().st_size for path in self.weights) + (self.adapters.held_bytes if self.adapters else 0)

    def sums(self, progress: Progress) -> dict[str, str]:
        """Read every file once: check those that SHA256SUMS lists, and return the SHA-256 of each by its name.

        All adapters are read, not only those in use (10 GB where all of mms-1b-all are there), so that none is found to
        be damaged only when its language comes up. Raises EngineLoadError.
        """
        adapters = self.adapters.paths if self.adapters else ()
        lines = verify(self.folder, (*self.others, *self.weights, *adapters), progress).splitlines()
        return {name: digest for name, _, digest in (line.rpartition(" ") for line in lines)}

    def verify(self, progress: Progress) -> str:
        """The revision, after `sums`. Raises EngineLoadError."""
        return revision(self.sums(progress))


def revision(sums: Mapping[str, str]) -> str:
    """12 hex digits: equal revisions have the same weights, adapters, settings, vocabulary and decoder."""
    parts = "".join(f"{name} {digest}\n" for name, digest in sums.items())
    return hashlib.sha256(f"decoder {DECODER_VERSION}\n{parts}".encode()).hexdigest()[:12]


def _check_architecture(path: Path, config: dict[str, Any]) -> None:
    architecture = ", ".join(config.get("architectures") or ()) or "no architecture"
    if not architecture.endswith("ForCTC"):
        raise EngineLoadError(
            f"{path} names {architecture}; only CTC models (Wav2Vec2ForCTC and its like) can align: "
            "choose a checkpoint that was fine-tuned for speech recognition"
        )
    if (kind := config.get("model_type")) not in MODEL_TYPES:
        raise EngineLoadError(f"{path} has model type {kind!r}; supported are {', '.join(MODEL_TYPES)}")
    if config.get("add_adapter") and kind != BERT:
        raise EngineLoadError(
            f"{path} sets add_adapter, which changes the frame rate; this is supported for {BERT} alone"
        )


def _convolutional(config: dict[str, Any]) -> FrontEnd:
    return FrontEnd(*(tuple(config[f"conv_{key}"]) for key in ("kernel", "stride", "dim")))


def _spectral(config: dict[str, Any], spectra: Spectra) -> FrontEnd:
    """Windows as Kaldi has them, frames of several, and what an adapter makes of these. Raises ValueError."""
    if config["feature_projection_input_dim"] != spectra.width:
        raise ValueError(
            f"feature_projection_input_dim is {config['feature_projection_input_dim']}, "
            f"but the feature extractor gives {spectra.stacked} times {spectra.bands} values"
        )
    kernels, strides, channels = [WINDOW, spectra.stacked], [HOP, spectra.stacked], [spectra.bands, spectra.width]
    for _ in range(config["num_adapter_layers"] if config.get("add_adapter") else 0):
        kernel, stride = config["adapter_kernel_size"], config["adapter_stride"]
        if kernel // 2 != stride // 2 or kernel % 2 == 0:  # as transformers pads, and as it counts
            raise ValueError(f"an adapter of kernel {kernel} and stride {stride} is not supported")
        kernels.append(kernel - 2 * (stride // 2))
        strides.append(stride)
        channels.append(config["output_hidden_size"])
    return FrontEnd(tuple(kernels), tuple(strides), tuple(channels))


def _paddable(config: dict[str, Any]) -> bool:
    """Whether padding, masked, changes nothing."""
    if config["model_type"] == BERT:  # its convolutions only look back, but for the adapter's
        return not config.get("add_adapter")
    return config["model_type"] in PADDABLE and config.get("feat_extract_norm") == "layer"


def balance(front_end: FrontEnd, width: int, layers: int, inner: int) -> float:
    """Frames at which attention takes as long as everything else, from the operations that each needs.

    With h for the encoder's width, i for the `inner` one of its feed-forward part: a layer's linear maps take
    8h² + 4hi operations for a frame, which is 24h² where i = 4h, and its attention 4hT among T frames, at
    ATTENTION_RATE of their speed.
    """
    linear = front_end.flops + layers * (8 * width**2 + 4 * width * inner)
    return float(linear / (layers * 4 * width / ATTENTION_RATE))


def _extractor(folder: Path) -> dict[str, Any]:
    """The settings of the feature extractor. Raises EngineLoadError where it wants another sampling rate."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path)
    if not settings:  # transformers 5 may keep it within the processor's
        path = folder / "processor_config.json"
        settings = read_json(path).get("feature_extractor") or {}
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise EngineLoadError(f"{path} asks for audio at {rate} Hz; only models for {SAMPLE_RATE} Hz can be served")
    return settings


def _spectra(extractor: dict[str, Any]) -> Spectra:
    return Spectra(int(extractor.get("num_mel_bins", 80)), int(extractor.get("stride", 2)))


def _convert(folder: Path) -> str:
    """What to do with weights that are pickled."""
    code = f"from transformers import AutoModelForCTC as M; M.from_pretrained({str(folder)!r}).save_pretrained('NEW')"
    return f'they are not. If you trust them, convert them: python -c "{code}", and move NEW/{WEIGHTS} into the folder'
