"""The engine behind `mms-fa`: the multilingual model for forced alignment that torchaudio publishes, with uroman.

Knows torchaudio's model and how MMS spells; what is not the model's own is in `aligner`.
Pratap et al. 2023, https://doi.org/10.48550/arXiv.2305.13516.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pickle
import textwrap
from typing import TYPE_CHECKING, Any, Final

import structlog
import torch
from torch.overrides import TorchFunctionMode
from torchaudio.models import Wav2Vec2Model, wav2vec2_model

from align_server.engines.ctc import encoder, romanise
from align_server.engines.ctc.aligner import Alphabet, CtcAligner, Traits
from align_server.engines.ctc.bundle import MMS_FA, NAME, Bundle
from align_server.engines.ctc.checkpoint import DECODER_VERSION
from align_server.engines.ctc.encoder import Shape
from align_server.engines.engine import EngineLoadError, Progress, Word, silent
from align_server.engines.precision import chosen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

VERSION: Final = 1  # raised with every change of this file or of `romanise` that can change a time or a score
LONGEST_TAIL_MS: Final = 100.0
FILLING: Final = ("fill_", "normal_", "uniform_", "zero_")  # ends of the names of what fills a tensor
DOWNLOADING, CHECKING, READING = 0.7, 0.8, 0.9  # how far loading is after each

log = structlog.get_logger()


class MmsEngine(CtcAligner):
    """A wav2vec2 model as torchaudio publishes it; the weights are downloaded into torch's cache where they lack.

    `precision` is fp32, bf16, int8, or auto: bf16 on a CPU or GPU that multiplies it in hardware, fp32 elsewhere.
    In bf16 all but the last layer and the softmax, which are in fp32, is in bf16; in int8 most of that is in int8.
    Raises EngineLoadError for a precision that there is not, or not on this device.

    The model has no token between words, and says a letter in few frames, at its beginning rather than its end. So a
    word ends in the middle of the blanks that follow, but at most LONGEST_TAIL_MS after its last letter: as long as
    a sound at the end of a word lasts. Beyond twice that, blanks are a pause between words (200 ms is where pauses are
    usually taken to begin) and no longer the word's; the next one starts with its first letter all the same.
    """

    def __init__(self, device: str, precision: str = "auto", bundle: Bundle = MMS_FA) -> None:
        self._bundle = bundle
        self._precision = chosen(precision, device)
        self._tokens = {label: token for token, label in enumerate(bundle.labels) if token}
        self._romaniser = romanise.Romaniser(self._tokens.keys())
        traits = Traits(
            front_end=bundle.front_end,
            alphabet=Alphabet(len(bundle.labels), blank=0, delimiter=None),
            head="aux",
            paddable=bundle.paddable,
            balance=bundle.balance,
            longest_tail_ms=LONGEST_TAIL_MS,
        )
        super().__init__(NAME, device, traits)

    @property
    def precision(self) -> str:
        """What most of it computes in: fp32, bf16 or int8."""
        return self._precision

    @property
    def revision(self) -> str:
        """A hash of weights, precision, romaniser and decoder, 12 hex digits; reads the weights unless loaded.

        Raises EngineLoadError where they are not there: nothing is downloaded before `load`.
        """
        self._digest = self._digest or self._bundle.digest(silent)
        parts = (
            f"decoder {DECODER_VERSION}, {NAME} {VERSION}",
            f"uroman {importlib.metadata.version('uroman')}",
            f"{self._precision}, {''.join(self._bundle.labels)}",
            self._digest,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk; 0 before they are downloaded."""
        return self._bundle.size_bytes

    def load(self, progress: Progress = silent) -> None:
        """Download the weights unless they are in the cache, and read them. Raises EngineLoadError."""
        begin = 0.0
        if not self._bundle.path.exists():
            self._bundle.download(lambda share, what: progress(DOWNLOADING * share, what))
            begin = DOWNLOADING
        self._digest = self._bundle.digest(lambda share, what: progress(begin + (CHECKING - begin) * share, what))
        if self._bundle.sha256 and self._digest != self._bundle.sha256:
            log.warning("not the published weights", file=str(self._bundle.path), sha256=self._digest)
        progress(CHECKING, "reading the weights")
        if self.device == "cpu":
            weights = read_model(self._bundle).state_dict().__getitem__
            self._model, self._precision = encoder.read(_shape(self._bundle), weights, self._precision)
        else:
            self._model, self._precision = self._stock(lambda: read_model(self._bundle), self._precision)
        progress(READING, "reading the tables of uroman")
        romanise.load()
        progress(1.0, "loaded")

    def _spell(self, word: Word, _alphabet: Alphabet, /) -> tuple[Sequence[int], str]:
        letters, why = self._romaniser.spell(word.text, word.language)
        return tuple(self._tokens[letter] for letter in letters), why

    def _given(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        waveform = torch.from_numpy(samples)
        normalised: npt.NDArray[np.float32] = torch.nn.functional.layer_norm(waveform, waveform.shape).numpy()
        return normalised

    def _hidden(self, model: Any, given: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        hidden: torch.Tensor = model.encoder(*model.feature_extractor(given, lengths))
        return hidden


def read_model(bundle: Bundle) -> Wav2Vec2Model:
    """The model on a map of its file: nothing is read before it is used. Raises EngineLoadError."""
    path = bundle.path
    cure = f"move it out of the way to have it downloaded again, or {bundle.cure}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        found = textwrap.shorten(str(error), 200)
        raise EngineLoadError(f"{path} is damaged, cut off, or no file of weights ({found}); {cure}") from error
    with _Unfilled():  # the file's map takes the place of its weights
        model = wav2vec2_model(**bundle.params)
    try:
        for name in ("aux.weight", "aux.bias"):
            state[name] = state[name][[row for row in range(len(state[name])) if row not in bundle.unused]]
        model.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        found = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise EngineLoadError(
            f"{path} has {path.stat().st_size} bytes, but not the weights of this model ({found}); {cure}"
        ) from error
    return model


class _Unfilled(TorchFunctionMode):
    """New modules within have weights as malloc gives them: pages that nobody writes take no memory.

    Not made on the device meta: what torchaudio normalises there has torch import its compilers, for 114 MB and 1.3 s.
    """

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__.endswith(FILLING):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _shape(bundle: Bundle) -> Shape:
    params = bundle.params
    return Shape(
        convolutions=tuple((kernel, stride) for _, kernel, stride in params["extractor_conv_layer_config"]),
        convolution_bias=params["extractor_conv_bias"],
        group_norm=not bundle.paddable,
        pre_norm=params["encoder_layer_norm_first"],
        layers=params["encoder_num_layers"],
        heads=params["encoder_num_heads"],
        position_groups=params["encoder_pos_conv_groups"],
    )
