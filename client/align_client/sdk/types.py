"""What the SDK takes and gives. Times are seconds; knows no gRPC."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class WordKind(enum.Enum):
    """What stands at one place of a transcript."""

    WORD = "word"
    UNKNOWN_SOUND = "unknown sound"  # babble, laughter, `xxx`: takes time, has no text
    PAUSE = "pause"  # a hint: it may have no length


class MissingReason(enum.Enum):
    """Why a word has no time."""

    UNPRONOUNCEABLE = "the model cannot say this word"
    UNSUPPORTED_LANGUAGE = "the model does not know this language"
    AUDIO_TOO_SHORT = "the audio is too short for these words"
    NO_SPEECH = "the audio has no signal"
    ENGINE_FAILED = "the model failed on this segment"
    REFUSED = "the server refused the segment"


@dataclass(frozen=True, slots=True)
class Word:
    """One word or slot to align; `language` is ISO 639-3, empty for the model's first."""

    text: str
    language: str = ""
    kind: WordKind = WordKind.WORD


@dataclass(frozen=True, slots=True)
class Phone:
    """One sound of a word, as the model's dictionary names it, in seconds from the start of the word's audio."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, repr=False)
class WordTiming:
    """When a word was said, in seconds from the start of its audio.

    `start` and `end` are None where there is no time; then `reason` says why, and `detail` adds to it.
    `score` is 0 to 1: how well the word fits the audio under it.
    `phones` are there where they were asked for: one after the other, from the word's start to its end.
    """

    text: str
    start: float | None = None
    end: float | None = None
    score: float = 0.0
    reason: MissingReason | None = None
    detail: str = ""
    phones: tuple[Phone, ...] = ()

    def __repr__(self) -> str:
        shown = (
            ["text", "start", "end", "score"] if self.reason is None else ["text", "start", "end", "reason", "detail"]
        )
        shown += ["phones"] if self.phones else []
        return f"WordTiming({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def why(self) -> str:
        """The reason in words, or "" where there is a time."""
        if self.reason is None:
            return ""
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value


class SegmentTimings(tuple[WordTiming, ...]):  # noqa: SLOT001  a tuple can have no slots but empty ones
    """One timing for each word of a segment; `cached` where they were computed before."""

    cached = False


@dataclass(frozen=True, slots=True)
class AlignResult:
    """One timing for each word that was given, in the same order; `cached` where they were computed before."""

    words: tuple[WordTiming, ...]
    model: str
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where an utterance is said, in seconds.

    `score` is by how much a frame of it fits its words better than any unknown sound: 0.5 is usual, below 0.2 doubtful.
    """

    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words that were found in some audio, with their times, as they would be written: with capitals and stops.

    `language` is ISO 639-3, "" where nothing was found. `problem` says why a stretch could not be transcribed, or "".
    """

    words: tuple[WordTiming, ...] = ()
    language: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that a server can serve. `state` is available, loading, serving or failed.

    `transcribes`: whether it finds words, too; `phones`: whether it gives those of words; `locates`: whether it can
    look for utterances, known once it serves.
    The load is that of a model that serves: audio in seconds, `rate` in audio seconds per second.
    """

    name: str
    languages: tuple[str, ...]
    licence: str
    size_bytes: int
    state: str
    detail: str
    revision: str
    max_segment_s: float
    is_default: bool
    transcribes: bool = False
    locates: bool = False
    phones: bool = False
    queued_s: float = 0.0
    computing_s: float = 0.0
    rate: float = 0.0
    batch_s: float = 0.0
    batch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """What one open stream has out. Audio is in seconds."""

    client: str
    model: str
    unanswered_s: float
    credit_s: float
    audio_done_s: float


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is, what it accepts, and how busy it is. Audio is in seconds.

    `refused` counts refusals since the start, by reason; `in_vain` segments that were computed and that nobody
    waited for any more; `cached` those answered with what was computed before, which takes `cache_bytes` on disk.
    """

    address: str
    version: str
    protocol_revision: int
    pid: int
    uptime_s: float
    draining: bool
    device: str
    max_segment_s: float
    max_words: int
    queued_s: float
    computing_s: float
    granted_s: float
    clients: int
    rate: float
    memory_bytes: int
    segments_done: int
    audio_done_s: float
    memory_limit_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    in_vain: int = 0
    cached: int = 0
    cache_bytes: int = 0
    by_client: tuple[ClientLoad, ...] = ()
