"""The engine behind `ctc:FOLDER`: a wav2vec2-family CTC checkpoint, evaluated by transformers.

Knows how the parts of this package make word times out of segments; knows neither gRPC nor scheduling.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch.nn.utils import parametrize

from align_server.engines.ctc.align import fewest_frames, token_spans
from align_server.engines.ctc.checkpoint import Checkpoint
from align_server.engines.ctc.text import Vocabulary
from align_server.engines.engine import (
    SAMPLE_RATE,
    Engine,
    EngineLoadError,
    MissingReason,
    Progress,
    Result,
    Segment,
    Word,
    WordKind,
    WordTiming,
    probe,
    silent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

MAX_SEGMENT_S: Final = 40.0  # more than twice as long as what models are trained on
VARIANCE_FLOOR: Final = 1e-7  # as the feature extractor of transformers has it
CHECKING: Final = 0.6  # of the time of loading
UNUSED: Final = "masked_spec_embed"  # a weight of training alone, which checkpoints may lack
ALIGNED: Final = 16  # floats in a cache line
DELIMITER: Final = -1  # owns the tokens between words


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """How a segment's words became tokens.

    `owners` has the word of each token, DELIMITER between words; `slots` are the words that a star stands for;
    `missing` those that will have no time.
    """

    words: tuple[Word, ...]
    duration_ms: int
    tokens: tuple[int, ...]
    owners: tuple[int, ...]
    slots: frozenset[int]
    missing: dict[int, WordTiming]


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A segment ready to be computed; `samples` is float32, shape [samples]."""

    plan: _Plan
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A segment ready to be decoded; `emissions` are log posteriors, float32, shape [frames, vocabulary]."""

    plan: _Plan
    emissions: npt.NDArray[np.float32]


class CtcEngine(Engine):
    """A CTC checkpoint in a local folder. Nothing is ever downloaded, and no pickle read.

    `name` is what users call it, `device` cpu, cuda or mps. Raises EngineLoadError for what the folder's small files
    show to be wrong; `load` does so for the weights.

    On the CPU every segment is computed alone and unpadded: batches gain nothing there, and a result is the same to
    the bit in any batch. On other devices segments are computed together: padded and masked where the model's front
    end has layer norm, in groups of equal length where it has group norm, which would see the padding. There, a
    posterior may differ in its last digits with the size of the batch.

    A word's time is from the start of its first token to the end of its last. Its score is the mean posterior of its
    tokens: 1 where the model is certain of every letter. Slots and pauses have 0.
    """

    def __init__(self, name: str, folder: Path, device: str) -> None:
        self._checkpoint = Checkpoint.read(folder)
        self._vocabulary = Vocabulary.read(folder, self._checkpoint.vocab_size)
        self._model: torch.nn.Module | None = None
        self._revision = ""
        self._name = name
        self._device = device

    @property
    def name(self) -> str:
        """What users call it."""
        return self._name

    @property
    def languages(self) -> tuple[str, ...]:
        """None: a checkpoint does not say."""
        return ()

    @property
    def frame_ms(self) -> float:
        """The hop of the front end: 20 ms for all models known."""
        return 1000 * self._checkpoint.front_end.hop / SAMPLE_RATE

    @property
    def max_segment_s(self) -> float:
        """Convolutions take 20 MB for a second of audio while they run, in every lane: 0.8 GB for the longest."""
        return MAX_SEGMENT_S

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda or mps."""
        return self._device

    @property
    def revision(self) -> str:
        """A hash of weights, settings, vocabulary and decoder, 12 hex digits; reads all of them unless loaded."""
        self._revision = self._revision or self._checkpoint.verify(silent)
        return self._revision

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return self._checkpoint.size_bytes

    @property
    def pads(self) -> bool:
        """Not on the CPU. Elsewhere unlike lengths waste time: as padding, or as batches of one length each."""
        return self.device != "cpu"

    def load(self, progress: Progress = silent) -> None:
        """Check the files against SHA256SUMS, if there is one, and read the weights. Raises EngineLoadError."""
        self._revision = self._checkpoint.verify(lambda share, what: progress(CHECKING * share, what))
        progress(CHECKING, "reading the weights")
        self._model = _read_model(self._checkpoint).to(self.device)
        progress(1.0, "loaded")

    def probe(self, duration_ms: int) -> Segment:
        """Noise, with words of letters of the model's own alphabet."""
        letters = [letter for letter in self._vocabulary.letters if letter.isalpha()]
        return probe(duration_ms, ("".join(letters[:4]), "".join(letters[4:7] or letters)))

    def cost(self, duration_ms: int) -> int:
        """Milliseconds of audio, and a part that grows with their square: attention, see `Checkpoint.balance`."""
        return round(duration_ms * (1 + duration_ms / (self._checkpoint.balance * self.frame_ms)))

    def unload(self) -> None:
        """Let go of the weights."""
        self._model = None
        gc.collect()  # modules refer to themselves

    def prepare(self, segment: Segment) -> _Prepared | Result:
        """Spell the words and normalise the audio; a Result where no path can exist or mean anything."""
        front_end = self._checkpoint.front_end
        frames = front_end.frames(len(segment.pcm))
        plan = self._plan(segment, frames)
        if plan.slots.issuperset(plan.owners):
            nothing = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail="no word of this segment can be said")
            return Result(tuple(plan.missing.get(i, nothing) for i in range(len(segment.words))))
        if frames < (needed := fewest_frames(plan.tokens)):
            needed_ms = -(-1000 * front_end.samples(needed) // SAMPLE_RATE)
            detail = f"{segment.duration_ms} ms of audio for words that last {needed_ms} ms at the very least"
            return Result.missing(segment, MissingReason.AUDIO_TOO_SHORT, detail)
        if segment.pcm.min() == segment.pcm.max():
            return Result.missing(segment, MissingReason.NO_SPEECH, f"every sample is {segment.pcm[0]}")
        samples = segment.pcm.astype(np.float32) / 32768
        if self._checkpoint.normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)
        return _Prepared(plan, samples.astype(np.float32, copy=False))

    def _plan(self, segment: Segment, frames: int) -> _Plan:
        star = self._checkpoint.vocab_size
        said: list[tuple[int, list[int]]] = []
        missing: dict[int, WordTiming] = {}
        for i, word in enumerate(segment.words):
            if word.kind is WordKind.PAUSE:
                continue
            tokens, unknown = self._vocabulary.spell(word.text) if word.kind is WordKind.WORD else ([], "")
            if word.kind is WordKind.WORD and (unknown or not tokens):
                what = f"its vocabulary lacks {', '.join(dict.fromkeys(unknown))}" if unknown else "it has no letters"
                missing[i] = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail=f"{word.text!r}: {what}")
            said.append((i, tokens if tokens and not unknown else [star]))
        slots = frozenset(i for i, tokens in said if tokens == [star])
        for delimiter in (self._vocabulary.delimiter, None):  # without, where the audio has no room for it
            chain = list(_chain(said, slots, delimiter))
            tokens = [token for token, _ in chain]
            if frames >= fewest_frames(tokens):
                break
        return _Plan(segment.words, segment.duration_ms, tuple(tokens), tuple(o for _, o in chain), slots, missing)

    def compute(self, batch: Sequence[_Prepared]) -> list[_Scored]:
        """Log posteriors of each segment."""
        model = self._model
        if model is None:
            raise RuntimeError("CtcEngine.compute was called before load")
        samples = [torch.from_numpy(item.samples) for item in batch]
        with torch.inference_mode():
            if self.device == "cpu":
                emissions = [_emissions(model, one[None])[0] for one in samples]
            else:
                emissions = self._together(model, samples)
        return [_Scored(item.plan, emission.numpy()) for item, emission in zip(batch, emissions, strict=True)]

    def _together(self, model: torch.nn.Module, samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Emissions of segments that share forward passes, each of shape [frames, vocabulary]."""
        if self._checkpoint.paddable:
            padded = torch.nn.utils.rnn.pad_sequence(list(samples), batch_first=True)
            lengths = torch.tensor([len(one) for one in samples])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            scored = _emissions(model, padded.to(self.device), mask.to(self.device))
            frames = map(self._checkpoint.front_end.frames, lengths.tolist())
            return [emission[:count] for emission, count in zip(scored, frames, strict=True)]
        emissions: dict[int, torch.Tensor] = {}
        for length in {len(one) for one in samples}:
            group = [i for i, one in enumerate(samples) if len(one) == length]
            scored = _emissions(model, torch.stack([samples[i] for i in group]).to(self.device))
            emissions.update(zip(group, scored, strict=True))
        return [emissions[i] for i in range(len(samples))]

    def decode(self, scored: _Scored) -> Result:
        """Word times; see the class. Raises ArithmeticError where the model gave what is not a number."""
        plan = scored.plan
        spans = token_spans(scored.emissions, plan.tokens, self._vocabulary.blank)
        owners = np.array(plan.owners)
        times: list[WordTiming] = []
        at = 0  # where the last word ended
        for i, word in enumerate(plan.words):
            mine = np.flatnonzero(owners == i)
            if word.kind is WordKind.PAUSE:  # the first of several has all of the gap
                later = np.flatnonzero(owners > i)
                end = self._ms(spans.starts[later[0]], plan) if len(later) else plan.duration_ms
                times.append(WordTiming(at, end))
                at = end
                continue
            start, end = self._ms(spans.starts[mine[0]], plan), self._ms(spans.ends[mine[-1]], plan)
            score = 0.0 if i in plan.slots else min(1.0, float(spans.posteriors[mine].mean()))
            times.append(plan.missing.get(i) or WordTiming(start, end, score))
            at = end
        return Result(tuple(times))

    def _ms(self, frame: int, plan: _Plan) -> int:
        """When a frame begins: half a hop before the middle of the samples that it sees.

        For wav2vec2 these are 25 ms and the hop 20, so frame i is from 20i + 2.5 ms on, and no frame ends outside the
        audio. Dividing the audio by the number of frames instead, as others do, stretches it by up to 1.5 frames.
        """
        front_end = self._checkpoint.front_end
        sample = front_end.hop * int(frame) + (front_end.field - front_end.hop) / 2
        return min(max(0, round(1000 * sample / SAMPLE_RATE)), plan.duration_ms)


def _chain(
    said: Sequence[tuple[int, Sequence[int]]], slots: frozenset[int], delimiter: int | None
) -> list[tuple[int, int]]:
    """Each token with its owner. The delimiter is between words, not beside a star, which can be one itself."""
    chain: list[tuple[int, int]] = []
    last: int | None = None
    for i, tokens in said:
        if delimiter is not None and last is not None and not {i, last} & slots:
            chain.append((delimiter, DELIMITER))
        chain += ((token, i) for token in tokens)
        last = i
    return chain


def _emissions(model: torch.nn.Module, samples: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Log posteriors on the CPU, shape [batch, frames, vocabulary], of samples and their mask, [batch, samples]."""
    logits: torch.Tensor = model(samples, attention_mask=mask).logits
    return logits.log_softmax(-1).cpu()


def _read_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The model in float32, on the CPU, for inference. Raises EngineLoadError."""
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
    return _settled(model.eval().requires_grad_(requires_grad=False))


def _settled(model: torch.nn.Module) -> torch.nn.Module:
    """The model in memory of its own, with each normalised weight computed once and not in every forward.

    What transformers gives is a map of the file: it would change under the server, or end it with SIGBUS, where the
    file is written again in its place.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]  # a ModuleDict, as is_parametrized says
                parametrize.remove_parametrizations(module, name)
    # In one piece, which goes back to the system as a whole; many small ones would stay with malloc.
    weights = list(model.parameters())
    memory = torch.empty(sum(-(-weight.numel() // ALIGNED) * ALIGNED for weight in weights))
    start = 0
    for weight in weights:
        weight.data = memory[start : start + weight.numel()].view(weight.shape).copy_(weight.data)
        start += -(-weight.numel() // ALIGNED) * ALIGNED
    for buffer in model.buffers():
        buffer.data = buffer.data.clone()
    return model
