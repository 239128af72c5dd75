"""What an alignment engine takes and gives, and the interface that every engine has.

Knows neither gRPC nor scheduling: a batch of segments goes in, one result for each comes out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
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

    `pcm` is int16, mono, at `SAMPLE_RATE`, shape [samples].
    """

    id: str
    pcm: npt.NDArray[np.int16]
    words: tuple[Word, ...]

    @property
    def duration_ms(self) -> int:
        """Length of the audio in milliseconds, rounded up."""
        return -(-len(self.pcm) * 1000 // SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class WordTiming:
    """When a word was said, in ms from the segment's first sample, or the reason why that is not known.

    `start_ms` and `end_ms` are set together; `reason` is None exactly when they are set.
    `score` is 0 to 1: how well the word fits the audio under it. `detail` adds to the reason.
    """

    start_ms: int | None = None
    end_ms: int | None = None
    score: float = 0.0
    reason: MissingReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One timing for each word of the segment, in its order; slots and pauses included."""

    words: tuple[WordTiming, ...]

    @classmethod
    def missing(cls, segment: Segment, reason: MissingReason, detail: str = "") -> Result:
        """The result of a segment none of whose words could be timed."""
        return cls(tuple(WordTiming(reason=reason, detail=detail) for _ in segment.words))


class Engine(Protocol):
    """An acoustic model with its decoder. Methods may block; none is called on the event loop.

    `align` may be called from several threads at once after `load`.
    """

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-3, the default first."""

    @property
    def frame_ms(self) -> float:
        """Milliseconds between two places where a word can start."""

    @property
    def max_segment_s(self) -> float:
        """Longer segments are refused."""

    @property
    def revision(self) -> str:
        """Identifies weights and decoder: equal revisions give equal times."""

    def load(self) -> None:
        """Read the weights. Raises EngineLoadError with what to do about it."""

    def warm_up(self) -> None:
        """Run one real forward, so that the first request is not the slow one."""

    def cost(self, segment: Segment) -> int:
        """What the segment costs, in ms of audio as the engine will pad it."""

    def align(self, batch: Sequence[Segment]) -> list[Result]:
        """Align every segment, in order. An item that fails is a result with reasons, never an exception.

        A segment's result does not depend on what else is in the batch.
        """

    def unload(self) -> None:
        """Let go of the weights."""


class EngineLoadError(Exception):
    """A model could not be loaded; the message says what was found and what to do."""
