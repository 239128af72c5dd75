"""The engine behind `ctc:FOLDER`: a wav2vec2-family CTC checkpoint.

Knows a checkpoint's files and transformers, which reads the weights and evaluates what `encoder` does not; what is
not the checkpoint's own is in `aligner`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open

from align_server.engines.ctc import encoder
from align_server.engines.ctc.aligner import Alphabet, CtcAligner, Traits
from align_server.engines.ctc.checkpoint import Checkpoint, revision
from align_server.engines.ctc.encoder import Adapter, Encoder, Shape, torchaudio_name
from align_server.engines.ctc.languages import Languages
from align_server.engines.ctc.spectra import VARIANCE_FLOOR, features
from align_server.engines.ctc.text import Vocabulary
from align_server.engines.ctc.weights import adapted
from align_server.engines.engine import EngineLoadError, Progress, Scanning, Segment, Word, probe, silent
from align_server.engines.precision import chosen, floating, without_int8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

CHECKING: Final = 0.6  # of the time of loading
OWN: Final = frozenset({"hubert", "wav2vec2"})  # model types that our encoder computes
WHOLE: Final = frozenset({"wav2vec2-conformer"})  # those that transformers computes in fp32 alone: they mix types
EPSILON: Final = 1e-5
UNUSED: Final = "masked_spec_embed"  # a weight of training alone, which checkpoints may lack


class CtcEngine(CtcAligner):
    """A CTC checkpoint in a local folder. Nothing is ever downloaded, and no pickle read.

    `name` is what users call it, `device` cpu, cuda, cuda:N or mps. Raises EngineLoadError for what the folder's small
    files show to be wrong; `load` does so for the weights.

    It is computed in `precision`: fp32, bf16, int8, or auto, which is bf16 where the device multiplies it in hardware.
    On the CPU wav2vec2 and HuBERT are computed by our own encoder. Everything else is computed by transformers, which
    has no int8: auto is taken instead. Conformers are always in fp32. On other devices segments are padded and masked
    where that changes nothing; group norm in the front end would see the padding.

    Of a checkpoint with adapters each segment is computed in the language that most of its words are in: spelled in
    that language's vocabulary, heard with its adapter. A word of a language without one gets no time.
    `languages` are those whose adapters are served; all that are in the folder, where none is named.
    """

    def __init__(
        self, name: str, folder: Path, device: str, precision: str = "auto", languages: Sequence[str] = ()
    ) -> None:
        self._checkpoint = checkpoint = Checkpoint.read(folder, languages)
        adapters = checkpoint.adapters
        shape = _shape(checkpoint.config, adapted=adapters is not None)
        self._shape = shape if device == "cpu" else None
        self._precision = chosen(precision, device) if self._shape else without_int8(precision, device)
        if checkpoint.config["model_type"] in WHOLE:
            self._precision = "fp32"
        self._languages: Languages | None = None
        if adapters is None:
            self._vocabulary = Vocabulary.read(folder, checkpoint.vocab_size)
            alphabet = _alphabet(self._vocabulary, checkpoint.vocab_size)
        else:
            if shape is None:
                raise EngineLoadError(
                    f"{folder} has adapters, but not the architecture of facebook/mms-1b-all: with adapters only "
                    f"{' and '.join(sorted(OWN))} with do_stable_layer_norm are supported; choose a checkpoint of one "
                    "language"
                )
            self._languages = Languages(adapters, checkpoint.config)
            self._vocabulary = self._languages.vocabulary(adapters.default)
            alphabet = self._alphabet(())
        traits = Traits(
            front_end=checkpoint.front_end,
            alphabet=alphabet,
            paddable=checkpoint.paddable,
            balance=checkpoint.balance,
            head="lm_head",
        )
        super().__init__(name, device, traits)

    @property
    def precision(self) -> str:
        """What most of it computes in: fp32, bf16 or int8."""
        return self._precision

    @property
    def revision(self) -> str:
        """A hash of weights, settings, vocabulary and decoder, 12 hex digits; reads all of them unless loaded."""
        self._digest = self._digest or self._checkpoint.verify(silent)
        way = f"{'own encoder' if self._shape else 'transformers'}, {self._precision}"
        return hashlib.sha256(f"{way}\n{self._digest}".encode()).hexdigest()[:12]

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that there are adapters for; none where the model has one language, and does not say which."""
        return self._checkpoint.adapters.codes if self._checkpoint.adapters else ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk, and of as many adapters, the largest, as are in memory at a time."""
        return self._checkpoint.size_bytes

    def load(self, progress: Progress = silent) -> None:
        """Check the files against SHA256SUMS, if there is one, and read the weights. Raises EngineLoadError."""
        sums = self._checkpoint.sums(lambda share, what: progress(CHECKING * share, what))
        self._digest = revision(sums)
        progress(CHECKING, "reading the weights")
        if self._shape is None:
            self._model, self._precision = self._stock(lambda: _read_model(self._checkpoint), self._precision)
        else:
            self._model, self._precision = _own(self._shape, self._checkpoint, self._precision)
        if self._languages:
            self._languages.open(sums, self._adapting(self._model))
        progress(1.0, "loaded")

    def probe(self, duration_ms: int) -> Segment:
        """Noise, with words of letters of the model's own alphabet."""
        letters = [letter for letter in self._vocabulary.letters if letter.isalpha()]
        return probe(duration_ms, ("".join(letters[:4]), "".join(letters[4:7] or letters)))

    def unload(self) -> None:
        """Let go of the weights, and of the adapters."""
        if self._languages:
            self._languages.close()
        super().unload()

    def _alphabet(self, words: Sequence[Word], /) -> Alphabet:
        if self._languages is None:
            return super()._alphabet(words)
        language = self._languages.of(words)
        return _alphabet(self._languages.vocabulary(language), self._languages.size(language), language)

    def _adapting(self, model: torch.nn.Module) -> Callable[[Mapping[str, torch.Tensor]], Adapter | torch.nn.Module]:
        """What makes of an adapter's tensors what `_adapter` gives for the model."""
        if (shape := self._shape) is None:
            return lambda tensors: adapted(model, tensors)
        family, dtype = self._checkpoint.config["model_type"], floating(self._precision)
        return lambda tensors: Adapter.read(shape, lambda part: tensors[torchaudio_name(part, family)], dtype)

    def _adapter(self, alphabet: Alphabet, /) -> Adapter | torch.nn.Module | None:
        return self._languages.adapter(alphabet.language) if self._languages else None

    def _spell(self, word: Word, alphabet: Alphabet, /) -> tuple[Sequence[int], str]:
        vocabulary = self._vocabulary
        if self._languages:
            vocabulary = self._languages.vocabulary(alphabet.language)
        tokens, unknown = vocabulary.spell(word.text)
        if unknown:
            return (), f"its vocabulary lacks {', '.join(dict.fromkeys(unknown))}"
        return tokens, "it has no letters"

    def _knows(self, language: str) -> bool:
        return self._languages is None or self._languages.knows(language)

    @property
    def scanning(self) -> Scanning | None:
        """None where the model has an adapter for each language: a stretch of audio has no words to choose one by."""
        return None if self._languages else super().scanning

    def _given(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._checkpoint.spectra:
            return features(samples, self._checkpoint.spectra)
        if self._checkpoint.normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)
        return samples.astype(np.float32, copy=False)

    def _hidden(self, model: Any, given: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if self._checkpoint.spectra:
            width = self._checkpoint.spectra.width
            given = given.view(len(given), -1, width)
            lengths = lengths if lengths is None else lengths // width
        mask = None
        if lengths is not None:
            mask = (torch.arange(given.shape[1], device=given.device) < lengths[:, None]).long()
        hidden: torch.Tensor = model.base_model(given, attention_mask=mask).last_hidden_state
        return hidden


def _alphabet(vocabulary: Vocabulary, size: int, language: str = "") -> Alphabet:
    return Alphabet(size, vocabulary.blank, vocabulary.delimiter, language)


def _shape(config: dict[str, Any], *, adapted: bool) -> Shape | None:
    """The architecture of a config.json, None for one that our encoder does not have."""
    needed = {  # what it has, and what transformers takes where nothing is said
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "conv_pos_batch_norm": False,
        "feat_proj_layer_norm": True,
        "layer_norm_eps": EPSILON,  # that of the front end is always this one
    }
    if not adapted:
        needed["adapter_attn_dim"] = None
    pre_norm = bool(config.get("do_stable_layer_norm", False))
    if adapted and not pre_norm:  # other layers have no place for an adapter
        return None
    if config["model_type"] not in OWN or any(config.get(key, value) != value for key, value in needed.items()):
        return None
    return Shape(
        convolutions=tuple(zip(config["conv_kernel"], config["conv_stride"], strict=True)),
        convolution_bias=bool(config.get("conv_bias", False)),
        group_norm=config.get("feat_extract_norm", "group") == "group",
        pre_norm=pre_norm,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        position_groups=config.get("num_conv_pos_embedding_groups", 16),
        epsilon=EPSILON,
        adapted=adapted,
    )


def _own(shape: Shape, checkpoint: Checkpoint, precision: str) -> tuple[Encoder, str]:
    """Our encoder with the weights of a model of transformers, and its precision. Raises EngineLoadError."""
    state, family = _read_model(checkpoint).state_dict(), checkpoint.config["model_type"]
    try:
        return encoder.read(shape, lambda name: state[torchaudio_name(name, family)], precision)
    except KeyError as error:
        raise EngineLoadError(
            f"the weights in {checkpoint.folder} lack {error.args[0]}; save the checkpoint again"
        ) from error


def _read_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The model in float32, on the CPU: as far as can be, a map of its file. Raises EngineLoadError."""
    reports: Any = transformers.utils.logging  # what they would say is raised below
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    again = "copy or download it again"
    for path in checkpoint.weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise EngineLoadError(f"{path} is damaged or cut off ({error}); {again}") from error
    try:
        model, report = transformers.AutoModelForCTC.from_pretrained(
            checkpoint.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise EngineLoadError(f"the weights in {checkpoint.folder} do not fit its config.json ({error})") from error
    if missing := sorted(name for name in report["missing_keys"] if not name.endswith(UNUSED)):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise EngineLoadError(
            f"the weights in {checkpoint.folder} lack {len(missing)} of the model's tensors ({some}); "
            "choose a checkpoint that was fine-tuned for CTC, or save it again with save_pretrained"
        )
    return model  # type: ignore[no-any-return]  # transformers has no types
