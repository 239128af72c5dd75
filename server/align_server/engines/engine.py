"""What an alignment engine takes and gives, and the interface that every engine has.

Knows neither gRPC nor scheduling: a batch of segments goes in, one result for each comes out.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hz, of every segment


class WordKind(enum.Enum):
    """What stands at one place of a transcript."""

    WORD = "word"
    UNKNOWN_SOUND = "unknown sound"  # takes time in the audio, has no text
    PAUSE = "pause"  # a hint: it may have no length


class MissingReason(enum.Enum):
    """Why a word has no time."""

    UNPRONOUNCEABLE = "the model cannot say this word"
    UNSUPPORTED_LANGUAGE = "the model does not know this language"
    AUDIO_TOO_SHORT = "the audio is too short for these words"
    NO_SPEECH = "the audio has no signal"
    ENGINE_FAILED = "the model failed on this segment"


@dataclass(frozen=True, slots=True)
class Word:
    """One word or slot of a segment's transcript; `language` is ISO 639-3, empty for the model's first."""

    text: str
    language: str = ""
    kind: WordKind = WordKind.WORD


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A stretch of audio and what is said in it.

    `pcm` is int16, mono, at `SAMPLE_RATE`, shape [samples]. With `transcribe` there are no words, and they are to be
    found: in that ISO 639-3 language, or where it is empty, in the one that is heard. None means aligning. With `scan`
    there are no words either, and what the audio could be is asked for, see `Scanning`. With `phones` those of
    the words are asked for, too.
    """

    id: str
    pcm: npt.NDArray[np.int16]
    words: tuple[Word, ...]
    transcribe: str | None = None
    scan: bool = False
    phones: bool = False

    @property
    def duration_ms(self) -> int:
        """Length of the audio in milliseconds, rounded up."""
        return -(-len(self.pcm) * 1000 // SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class Phone:
    """One sound of a word, as the model's dictionary names it, in ms from the segment's first sample."""

    symbol: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class WordTiming:
    """When a word was said, in ms from the segment's first sample, or the reason why that is not known.

    `start_ms` and `end_ms` are set together; `reason` is None exactly when they are set.
    `score` is 0 to 1: how well the word fits the audio under it. `detail` adds to the reason.
    `phones` are there where they were asked for: one after the other, from the word's start to its end.
    """

    start_ms: int | None = None
    end_ms: int | None = None
    score: float = 0.0
    reason: MissingReason | None = None
    detail: str = ""
    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One timing for each word of the segment, in its order; slots and pauses included.

    Of a segment that asked for its words these are in `said`, one for each timing, as they would be written, with
    what stops a sentence at their ends; both are empty where nothing is said. `evidence` is that of a scan.
    """

    words: tuple[WordTiming, ...]
    said: tuple[Word, ...] = ()
    evidence: npt.NDArray[np.float32] | None = None

    @classmethod
    def missing(cls, segment: Segment, reason: MissingReason, detail: str = "") -> Result:
        """The result of a segment none of whose words could be timed, or found: then of one unknown sound."""
        said = () if segment.transcribe is None else (Word("", segment.transcribe, WordKind.UNKNOWN_SOUND),)
        return cls(tuple(WordTiming(reason=reason, detail=detail) for _ in segment.words or said), said)


@dataclass(frozen=True, slots=True)
class Scanning:
    """How an engine says what audio could be, to find utterances in a long recording.

    Evidence says how well each of `symbols` fits each frame of `frame_ms`, shape [frames, symbols]: a log score, 0 for
    the best one and rarely below -6. The last symbol is unknown sound, of which silence is one; `silence` is what lies
    between words. With `gives_way` a symbol may be followed by silence until the next comes, as the tokens of CTC are.
    """

    frame_ms: int
    symbols: int
    silence: int
    gives_way: bool = False


def silent(_share: float, _what: str) -> None:
    """Progress that nobody watches."""


Progress = Callable[[float, str], None]  # how far loading is, 0 to 1, and what is being done


class Engine(abc.ABC):
    """An acoustic model with its decoder. Methods may block; none is called on the event loop.

    A segment takes three steps: `prepare` and `decode` are its own, `compute` is shared with the others of a batch.
    Each may run in another thread, several at once, after `load`. What passes between them is the engine's own affair.
    A segment's result does not depend on what else is in a batch, nor on the number of threads.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What users call it."""

    @property
    @abc.abstractmethod
    def languages(self) -> tuple[str, ...]:
        """ISO 639-3, the default first; empty where the model does not say."""

    @property
    @abc.abstractmethod
    def frame_ms(self) -> float:
        """Milliseconds between two places where a word can start."""

    @property
    @abc.abstractmethod
    def max_segment_s(self) -> float:
        """Longer segments are refused."""

    @property
    @abc.abstractmethod
    def revision(self) -> str:
        """Identifies weights and decoder: equal revisions give equal times."""

    @property
    @abc.abstractmethod
    def device(self) -> str:
        """Where it computes: cpu, cuda, cuda:N or mps."""

    @property
    def replicas(self) -> int:
        """On how many such devices it computes at once, with a copy of the model on each."""
        return 1

    @property
    def precision(self) -> str:
        """What it computes in: fp32, bf16 or int8."""
        return "fp32"

    @property
    @abc.abstractmethod
    def size_bytes(self) -> int:
        """Size on disk of what `load` reads."""

    @property
    @abc.abstractmethod
    def pads(self) -> bool:
        """Whether `compute` pads a batch to its longest segment, so that unlike lengths waste time."""

    @property
    def transcribes(self) -> bool:
        """Whether it takes segments that ask for their words."""
        return False

    @property
    def phones(self) -> bool:
        """Whether it takes segments that ask for the phones of their words."""
        return False

    @property
    def scanning(self) -> Scanning | None:
        """How it scans a recording; None where it cannot. Known once it is loaded."""
        return None

    def symbols(self, word: Word) -> tuple[int, ...]:
        """The symbols of a scan that say a word; none where it cannot be said."""
        raise NotImplementedError(f"{type(self).__name__} does not scan {word.text!r}")

    @abc.abstractmethod
    def load(self, progress: Progress = silent) -> None:
        """Check and read the weights. Raises EngineLoadError with what to do about it."""

    def warm_up(self) -> None:
        """Run one real forward, so that the first request is not the slow one."""
        self.align([self.probe(1000)])

    def probe(self, duration_ms: int) -> Segment:
        """A segment of noise and words that the model can say, three a second, to warm it up and measure it with."""
        return probe(duration_ms)

    @abc.abstractmethod
    def cost(self, duration_ms: int) -> int:
        """What that much audio costs to compute, in ms of audio; more than proportional where attention is."""

    @abc.abstractmethod
    def prepare(self, segment: Segment) -> Any:
        """Get a segment ready on the CPU; a Result where there is nothing to compute."""

    @abc.abstractmethod
    def compute(self, batch: Sequence[Any]) -> list[Any]:
        """Score prepared segments, in order."""

    @abc.abstractmethod
    def decode(self, scored: Any) -> Result:
        """Find the times in what `compute` gave for one segment."""

    @abc.abstractmethod
    def unload(self) -> None:
        """Let go of the weights."""

    def align(self, batch: Sequence[Segment]) -> list[Result]:
        """All three steps in this thread, in order. Raises what the engine raises."""
        steps = [self.prepare(segment) for segment in batch]
        waiting = [i for i, step in enumerate(steps) if not isinstance(step, Result)]
        for i, scored in zip(waiting, self.compute([steps[i] for i in waiting]) if waiting else [], strict=True):
            steps[i] = self.decode(scored)
        return steps


def probe(duration_ms: int, words: tuple[str, ...] = ("hello", "my", "world")) -> Segment:
    """A segment of noise with those words over and over, three a second."""
    noise = np.random.default_rng(duration_ms).normal(0, 1000, duration_ms * SAMPLE_RATE // 1000).astype(np.int16)
    count = max(1, 3 * duration_ms // 1000)
    return Segment("probe", noise, tuple(Word(words[i % len(words)]) for i in range(count)))


class EngineLoadError(Exception):
    """A model could not be loaded; the message says what was found and what to do."""
