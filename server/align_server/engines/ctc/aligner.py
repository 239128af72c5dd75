"""What engines of CTC models share: from words to tokens, from samples to emissions in batches, from spans to times.

Knows neither files nor architectures nor alphabets: a model's own engine says how it spells, normalises and computes.
"""

from __future__ import annotations

import abc
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import torch

from align_server.engines.ctc.agreement import agreed
from align_server.engines.ctc.align import fewest_frames, token_spans
from align_server.engines.ctc.encoder import Encoder
from align_server.engines.ctc.weights import ready
from align_server.engines.device import fetch, lane, send, send_padded
from align_server.engines.engine import (
    SAMPLE_RATE,
    Engine,
    MissingReason,
    Result,
    Scanning,
    Segment,
    Word,
    WordKind,
    WordTiming,
)
from align_server.engines.pages import passing
from align_server.engines.precision import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from align_server.engines.ctc.checkpoint import FrontEnd

MAX_SEGMENT_S: Final = 40.0  # more than twice as long as what models are trained on
SCAN_FLOOR: Final = -6.0  # of a scan: a frame can say no more against a token
UNKNOWN: Final = -1.5  # of a scan: how well an unknown sound fits a frame that is not silent
DELIMITER: Final = -1  # owns the tokens between words

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The tokens that a segment is spelled in: `size` of them, CTC's `blank` among them.

    `delimiter` is the token between words, None where there is none. `language` tells a model's alphabets apart, where
    it has one for each language.
    """

    size: int
    blank: int
    delimiter: int | None
    language: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What sharing needs to know of a model.

    `alphabet` is the only one, or that of the default language. `paddable`: whether padding, with lengths given,
    changes nothing. `balance` is the number of frames at which attention takes as long as everything else.
    `head` is what the library that computes the model where we do not calls its last layer.
    `longest_tail_ms` is by how much a word may end after its last token: half of the blanks that follow, but no more
    than that; 0 ends it with the token.
    """

    front_end: FrontEnd
    alphabet: Alphabet
    paddable: bool
    balance: float
    head: str
    longest_tail_ms: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a segment's words became tokens.

    `owners` has the word of each token, DELIMITER between words; `slots` are the words that a star stands for;
    `missing` those that will have no time. A scan has no tokens.
    """

    words: tuple[Word, ...]
    duration_ms: int
    alphabet: Alphabet
    tokens: tuple[int, ...]
    owners: tuple[int, ...]
    slots: frozenset[int]
    missing: dict[int, WordTiming]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A segment ready to be computed: what the model is given, float32, of one dimension, and the frames it makes."""

    plan: Plan
    given: npt.NDArray[np.float32]
    frames: int


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A segment ready to be decoded; `emissions` are log posteriors, float32, shape [frames, vocabulary]."""

    plan: Plan
    emissions: npt.NDArray[np.float32]


class CtcAligner(Engine):
    """An engine whose model gives, for every frame, the log posterior of every token.

    `name` is what users call it, `device` cpu, cuda, cuda:N or mps.

    On the CPU every segment is computed alone and unpadded: batches gain nothing there, and a result is the same to
    the bit in any batch. On other devices segments are computed together: padded, with their lengths, where the model
    is paddable, in groups of equal length where it is not. There, a posterior may differ in its last digits with the
    size of the batch.

    A word's time is from the start of its first token to the end of its last, and of its tail. Its score is the mean
    posterior of its tokens: 1 where the model is certain of every letter. Slots and pauses have 0.
    """

    def __init__(self, name: str, device: str, traits: Traits) -> None:
        self._name = name
        self._device = device
        self._traits = traits
        self._model: torch.nn.Module | None = None
        self._digest = ""  # of its files, once they were read

    @abc.abstractmethod
    def _spell(self, word: Word, alphabet: Alphabet, /) -> tuple[Sequence[int], str]:
        """The tokens of a word, not the blank; where there are none, why."""

    @abc.abstractmethod
    def _given(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the model is given, of one dimension, of samples within -1 to 1: these as it wants them, or features."""

    @abc.abstractmethod
    def _hidden(self, model: Any, given: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """What the last layer of a model that is no Encoder is given, shape [batch, frames, width].

        `given`, shape [batch, values], has the model's type and is on its device; so are `lengths`, in values, shape
        [batch], where there is padding.
        """

    def _alphabet(self, _words: Sequence[Word], /) -> Alphabet:
        """What a segment of these words is spelled in."""
        return self._traits.alphabet

    def _knows(self, _language: str, /) -> bool:
        """Whether the model has what it needs for the words of a language."""
        return True

    def _adapter(self, _alphabet: Alphabet, /) -> Any:
        """What makes an Encoder hear in an alphabet; of other models one that does. None where there is no other."""
        return None

    @property
    def name(self) -> str:
        """What users call it."""
        return self._name

    @property
    def languages(self) -> tuple[str, ...]:
        """None, where the model does not say."""
        return ()

    @property
    def frame_ms(self) -> float:
        """The hop of the front end: 20 ms for all models known."""
        return 1000 * self._traits.front_end.hop / SAMPLE_RATE

    @property
    def max_segment_s(self) -> float:
        """Convolutions take 20 MB for a second of audio while they run, in every lane: 0.8 GB for the longest."""
        return MAX_SEGMENT_S

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda, cuda:N or mps."""
        return self._device

    @property
    def pads(self) -> bool:
        """Not on the CPU. Elsewhere unlike lengths waste time: as padding, or as batches of one length each."""
        return self.device != "cpu"

    def cost(self, duration_ms: int) -> int:
        """Milliseconds of audio, and a part that grows with their square: attention, see `checkpoint.balance`."""
        return round(duration_ms * (1 + duration_ms / (self._traits.balance * self.frame_ms)))

    def _stock(self, read: Callable[[], torch.nn.Module], precision: str) -> tuple[torch.nn.Module, str]:
        """A model of another library on the device, and the precision that it has, see `agreed`.

        `read` gives it as it is published, in fp32 on the CPU; as often as it is asked, for its weights are converted.
        """
        return agreed(
            precision,
            make=lambda name: ready(read(), self._traits.head, floating(name)).to(self.device),
            hear=lambda model, samples: self._emissions(model, self._batch(samples).to(self.device))[0].cpu(),
            exact=lambda samples: self._emissions(passing(read().eval()), self._batch(samples))[0],
        )

    def _batch(self, samples: torch.Tensor) -> torch.Tensor:
        """What the model is given of samples, as a batch of one."""
        return torch.from_numpy(self._given(samples.numpy()))[None]

    def unload(self) -> None:
        """Let go of the weights."""
        self._model = None
        gc.collect()  # modules refer to themselves

    def prepare(self, segment: Segment) -> Prepared | Result:
        """Spell the words and normalise the audio; a Result where no path can exist or mean anything."""
        front_end = self._traits.front_end
        frames = front_end.frames(len(segment.pcm))
        if segment.scan:
            return self._prepare_scan(segment, frames)
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
        return self._ready(plan, segment, frames)

    def _ready(self, plan: Plan, segment: Segment, frames: int) -> Prepared:
        return Prepared(plan, self._given(segment.pcm.astype(np.float32) / np.float32(32768)), frames)

    def _prepare_scan(self, segment: Segment, frames: int) -> Prepared | Result:
        alphabet = self._alphabet(())
        if not frames:
            return Result((), evidence=np.zeros((0, alphabet.size + 1), np.float32))
        plan = Plan((), segment.duration_ms, alphabet, (), (), frozenset(), {})
        return self._ready(plan, segment, frames)

    def _plan(self, segment: Segment, frames: int) -> Plan:
        alphabet = self._alphabet(segment.words)
        star = alphabet.size
        said: list[tuple[int, Sequence[int]]] = []
        missing: dict[int, WordTiming] = {}
        slots: set[int] = set()
        for i, word in enumerate(segment.words):
            if word.kind is WordKind.PAUSE:
                continue
            tokens: Sequence[int] = ()
            if word.kind is WordKind.WORD and not self._knows(word.language):
                detail = f"{word.text!r} is in {word.language!r}, for which the model has no adapter"
                missing[i] = WordTiming(reason=MissingReason.UNSUPPORTED_LANGUAGE, detail=detail)
            elif word.kind is WordKind.WORD:
                tokens, why = self._spell(word, alphabet)
                if not tokens:
                    missing[i] = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail=f"{word.text!r}: {why}")
            if not tokens:
                slots.add(i)
            said.append((i, tokens or [star]))
        for delimiter in (alphabet.delimiter, None):  # without, where the audio has no room for it
            chain = list(_chain(said, slots, delimiter))
            tokens = [token for token, _ in chain]
            if frames >= fewest_frames(tokens):
                break
        owners = tuple(owner for _, owner in chain)
        return Plan(segment.words, segment.duration_ms, alphabet, tuple(tokens), owners, frozenset(slots), missing)

    def compute(self, batch: Sequence[Prepared]) -> list[Scored]:
        """Log posteriors of each segment."""
        model = self._model
        if model is None:
            raise RuntimeError(f"{type(self).__name__}.compute was called before load")
        given = [torch.from_numpy(item.given) for item in batch]
        adapters = (self._adapter(item.plan.alphabet) for item in batch)
        models: list[torch.nn.Module] = []  # until the lane is done with them: others may drop them
        with torch.inference_mode(), lane(self.device):
            if isinstance(model, Encoder):
                emissions = [model(*one).log_softmax(-1) for one in zip(given, adapters, strict=True)]
            else:
                models += (model if other is None else other for other in adapters)
                emissions = self._by_model(models, given, [item.frames for item in batch])
        return [Scored(item.plan, emission.numpy()) for item, emission in zip(batch, emissions, strict=True)]

    def _by_model(
        self, models: Sequence[torch.nn.Module], given: Sequence[torch.Tensor], frames: Sequence[int]
    ) -> list[torch.Tensor]:
        """Emissions of segments, each by its own of `models` that are no Encoder; those of one model together."""
        if self.device == "cpu":
            return [self._emissions(model, one[None])[0] for model, one in zip(models, given, strict=True)]
        return _in_groups(
            models, lambda model, of: self._together(model, [given[i] for i in of], [frames[i] for i in of])
        )

    def _together(
        self, model: torch.nn.Module, given: Sequence[torch.Tensor], frames: Sequence[int]
    ) -> list[torch.Tensor]:
        """Emissions of segments that share forward passes, each of shape [frames, vocabulary]."""
        if self._traits.paddable:
            lengths = torch.tensor([len(one) for one in given])
            scored = self._emissions(model, send_padded(given, self.device), send(lengths, self.device))
            return [emission[:count] for emission, count in zip(fetch(scored), frames, strict=True)]
        return _in_groups(
            list(map(len, given)),
            lambda _, of: fetch(self._emissions(model, send_padded([given[i] for i in of], self.device))),
        )

    def _emissions(
        self, model: torch.nn.Module, given: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log posteriors on the device, float32, shape [batch, frames, vocabulary], by a model that is no Encoder.

        The last layer and the softmax are in fp32, whatever the rest is in. `given` is float32; see `_hidden`.
        """
        hidden = self._hidden(model, given.to(next(model.parameters()).dtype), lengths)
        logits: torch.Tensor = model.get_submodule(self._traits.head)(hidden.float())
        return logits.log_softmax(-1)

    def decode(self, scored: Scored) -> Result:
        """Word times; see the class. Raises ArithmeticError where the model gave what is not a number."""
        plan = scored.plan
        if not plan.tokens:
            return Result((), evidence=_evidence(scored.emissions, plan.alphabet))
        spans = token_spans(scored.emissions, plan.tokens, plan.alphabet.blank)
        following = np.append(spans.starts[1:], len(scored.emissions))
        tails = np.minimum((following - spans.ends) / 2, self._traits.longest_tail_ms / self.frame_ms)
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
            last = mine[-1]
            start, end = self._ms(spans.starts[mine[0]], plan), self._ms(spans.ends[last] + tails[last], plan)
            score = 0.0 if i in plan.slots else min(1.0, float(spans.posteriors[mine].mean()))
            times.append(plan.missing.get(i) or WordTiming(start, end, score))
            at = end
        return Result(tuple(times))

    @property
    def scanning(self) -> Scanning | None:
        """By tokens, in every frame; blank, or what stands between words, is silence."""
        alphabet = self._alphabet(())
        return Scanning(round(self.frame_ms), alphabet.size + 1, alphabet.blank, gives_way=True)

    def symbols(self, word: Word) -> tuple[int, ...]:
        """The tokens of a word."""
        if word.kind is not WordKind.WORD or not self._knows(word.language):
            return ()
        return tuple(self._spell(word, self._alphabet(()))[0])

    def _ms(self, frame: float, plan: Plan) -> int:
        """When a frame begins: half a hop before the middle of the samples that it sees.

        For wav2vec2 these are 25 ms and the hop 20, so frame i is from 20i + 2.5 ms on, and no frame ends outside the
        audio. Dividing the audio by the number of frames instead, as others do, stretches it by up to 1.5 frames.
        """
        front_end = self._traits.front_end
        sample = front_end.hop * float(frame) + (front_end.field - front_end.hop) / 2
        return min(max(0, round(1000 * sample / SAMPLE_RATE)), plan.duration_ms)


def _in_groups(
    keys: Sequence[Key], compute: Callable[[Key, Sequence[int]], Iterable[torch.Tensor]]
) -> list[torch.Tensor]:
    """What `compute` gives for each place in `keys`: it is called once for a key, with all places that have it."""
    found: dict[int, torch.Tensor] = {}
    for key in dict.fromkeys(keys):
        of = [i for i, other in enumerate(keys) if other == key]
        found.update(zip(of, compute(key, of), strict=True))
    return [found[i] for i in range(len(keys))]


def _evidence(emissions: npt.NDArray[np.float32], alphabet: Alphabet) -> npt.NDArray[np.float32]:
    """What a scan wants of log posteriors, shape [frames, tokens + 1]."""
    fits = emissions - emissions.max(1, keepdims=True)
    if alphabet.delimiter is not None:
        fits[:, alphabet.blank] = fits[:, [alphabet.blank, alphabet.delimiter]].max(1)
    unknown = np.maximum(fits[:, alphabet.blank], UNKNOWN)
    evidence: npt.NDArray[np.float32] = np.concatenate([fits, unknown[:, None]], axis=1).clip(min=SCAN_FLOOR)
    return evidence


def _chain(said: Sequence[tuple[int, Sequence[int]]], slots: set[int], delimiter: int | None) -> list[tuple[int, int]]:
    """Each token with its owner. The delimiter is between words, not beside a star, which can be one itself."""
    chain: list[tuple[int, int]] = []
    last: int | None = None
    for i, tokens in said:
        if delimiter is not None and last is not None and not {i, last} & slots:
            chain.append((delimiter, DELIMITER))
        chain += ((token, i) for token in tokens)
        last = i
    return chain
