"""Streams a recording, whatever its container, as int16 mono at 16 kHz, and cuts spans out of it in one pass.

Knows libsndfile and the resampler; memory holds one span and one block, however long the recording is.
Does not know transcripts. Stereo is mixed down to the mean of its channels; a rate other than 16 kHz is
resampled by soxr, which adds no delay; clipped audio and 8 kHz audio are accepted as they are.

Times of mp3: libsndfile drops what the LAME tag says the encoder added, so a tagged file is exact; a file
without that tag starts 1105 samples (25 ms at 44.1 kHz) late, as it does in players.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from collections import deque
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import soundfile
import soxr

from align_client.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hz
_PER_MS = SAMPLE_RATE // 1000
_FULL_SCALE = 32_768.0
_BLOCK_S = 0.5  # libsndfile gives nothing of a block that has damage in it
_BLOCK = 1 << 17  # values, all channels together
_RATES = range(1_000, 1_000_000)
_MOST_CHANNELS = 64  # of an array: more is an array whose axes are swapped
_LOUDEST = 64.0  # times full scale: more is integers stored as floats
_CONTAINERS = frozenset({
    ".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".aac", ".wma", ".wmv", ".avi", ".mpg", ".mpeg", ".mts",
    ".3gp", ".amr",
})  # fmt: skip
_EXACT_LENGTH = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "CAF", "AU"})


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording, in milliseconds from its start; `end_ms` is the first one outside."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The audio of a span: `pcm` is int16, mono, at `SAMPLE_RATE`, shape [samples].

    It is exactly as long as the span, or shorter where the recording ends inside the span or before it:
    then `recording_ms` says how long the recording is; otherwise it is None.
    """

    span: Span
    pcm: npt.NDArray[np.int16]
    recording_ms: int | None = None

    @property
    def missing_ms(self) -> int:
        """How much of the span lies after the end of the recording."""
        return self.span.end_ms - self.span.start_ms - -(-len(self.pcm) // _PER_MS)


class _Source(Protocol):
    rate: int
    duration_s: float | None

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]: ...


def cut(path: Path, spans: Sequence[Span]) -> Generator[Cut]:
    """Cut `spans` out of the recording at `path`, in their order, reading it once and no further than needed.

    The spans may overlap and must be sorted by start, else ValueError. Closing the iterator closes the file.
    Raises MediaError where the recording cannot be opened, and where it is damaged (or holds a value
    that is not a number): by then all spans that end before the damage have been yielded.
    """
    for span in spans:
        if not 0 <= span.start_ms <= span.end_ms:
            raise ValueError(f"{span} is not a stretch of a recording")
    for before, after in itertools.pairwise(spans):
        if after.start_ms < before.start_ms:
            raise ValueError(f"{after} comes after {before}: sort spans by start_ms")
    return _cut(path, spans)


def _cut(path: Path, spans: Sequence[Span]) -> Generator[Cut]:
    if not spans:
        return
    with closing(_stream(path)) as blocks:
        window = _Window(blocks)
        for span in spans:
            pcm = window.take(span.start_ms * _PER_MS, span.end_ms * _PER_MS)
            short = len(pcm) < (span.end_ms - span.start_ms) * _PER_MS
            yield Cut(span, pcm, -(-window.end // _PER_MS) if short else None)


async def cut_in_thread(path: Path, spans: Sequence[Span]) -> AsyncIterator[Cut]:
    """The same, decoded in a thread. One at a time: the next is cut when it is asked for."""
    pieces = cut(path, spans)
    turn: asyncio.Future[Cut | None] | None = None
    try:
        while True:
            turn = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            piece = await asyncio.shield(turn)
            if piece is None:
                return
            yield piece
    finally:
        # A thread cannot be interrupted: when this task is, the file is closed after the thread is done with it.
        if turn is not None:
            await asyncio.wait([turn])
        pieces.close()


def duration_ms(path: Path) -> int:
    """How long the recording is, rounded up, by its header; read through where the header does not say."""
    with _opened(path) as source:
        if source.duration_s is not None:
            return -int(-source.duration_s * 1000 // 1)
    with closing(_stream(path)) as blocks:
        return -(-sum(map(len, blocks)) // _PER_MS)


def read(path: Path) -> npt.NDArray[np.int16]:
    """The whole recording, shape [samples]: for short ones, which fit in memory. Raises MediaError."""
    with closing(_stream(path)) as blocks:
        return np.concatenate(list(blocks))


def from_array(samples: npt.NDArray[np.generic], sample_rate: int) -> npt.NDArray[np.int16]:
    """Samples of any rate as int16 mono at 16 kHz.

    `samples` is int16, float32 or float64, shape [samples] or [samples, channels]; floats have full scale 1
    and are clipped beyond it. Raises ValueError for other types and shapes, no samples, NaN and infinity.
    """
    if samples.dtype not in (np.int16, np.float32, np.float64):
        raise ValueError(f"audio is an array of {samples.dtype}; convert it to int16, or to float32 of full scale 1")
    if samples.ndim not in {1, 2} or (samples.ndim == 2 and not 1 <= samples.shape[1] <= _MOST_CHANNELS):
        raise ValueError(f"audio has the shape {samples.shape}; give [samples] or [samples, channels]")
    if not len(samples):
        raise ValueError("audio has no samples")
    if sample_rate not in _RATES:
        raise ValueError(f"audio has a sample rate of {sample_rate}; give it in Hz")
    if samples.dtype == np.int16:
        scaled = samples.astype(np.float32) / np.float32(_FULL_SCALE)
    else:
        finite = np.isfinite(samples)
        if not finite.all():
            row = int(np.argmin(finite.reshape(len(samples), -1).all(axis=1)))
            raise ValueError(f"audio is not a number at sample {row} (second {row / sample_rate:.3f})")
        loudest = float(np.abs(samples.astype(np.float64)).max())
        if loudest > _LOUDEST:
            raise ValueError(f"audio reaches {loudest:g}, but float samples have full scale 1; divide them")
        scaled = samples.astype(np.float32)
    mono = scaled if scaled.ndim == 1 else mix_down(scaled)
    return np.concatenate(list(_at_16k(iter([mono]), sample_rate)))


def mix_down(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of the channels of `samples`, whose shape is [samples, channels]."""
    channels = samples.shape[1]
    mono = samples[:, 0].copy()
    for channel in range(1, channels):  # numpy's mean over so short an axis takes fifteen times as long
        mono += samples[:, channel]
    mono /= channels
    return mono


class _Window:
    """What a stream of blocks has given lately: from the start of the span last taken to `end`."""

    def __init__(self, blocks: Iterator[npt.NDArray[np.int16]]) -> None:
        self._blocks = blocks
        self._held: deque[npt.NDArray[np.int16]] = deque()
        self._start = 0  # samples before the first held block
        self.end = 0  # samples given by the stream so far

    def take(self, start: int, end: int) -> npt.NDArray[np.int16]:
        """Samples `start` to `end`, fewer where the stream ends; lets go of what is before `start`."""
        self._forget(start)
        while self.end < end:
            block = next(self._blocks, None)
            if block is None:
                break
            self._held.append(block)
            self.end += len(block)
            self._forget(start)
        pieces = []
        position = self._start
        for block in self._held:
            pieces.append(block[max(0, start - position) : max(0, end - position)])
            position += len(block)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)

    def _forget(self, start: int) -> None:
        while self._held and self._start + len(self._held[0]) <= start:
            self._start += len(self._held.popleft())


def _stream(path: Path) -> Generator[npt.NDArray[np.int16]]:
    """The whole recording, block after block, as int16 mono at 16 kHz."""
    given = 0
    with _opened(path) as source:
        if source.rate not in _RATES:
            raise MediaError(path, f"its header says {source.rate} Hz, which no recording has; re-encode it")
        for block in _at_16k(source.blocks(), source.rate):
            given += len(block)
            yield block
    if not given:
        raise MediaError(path, "holds no audio: its length is zero")


def _at_16k(blocks: Iterator[npt.NDArray[np.float32]], rate: int) -> Iterator[npt.NDArray[np.int16]]:
    if rate == SAMPLE_RATE:
        yield from map(_to_int16, blocks)
        return
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    failure: MediaError | None = None
    try:
        for block in blocks:
            yield _to_int16(resampler.resample_chunk(block))
    except MediaError as error:
        failure = error  # what the resampler still holds comes before the damage
    yield _to_int16(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    if failure is not None:
        raise failure


def _to_int16(block: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    scaled = block * np.float32(_FULL_SCALE)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1, out=scaled)
    return scaled.astype(np.int16)


def _opened(path: Path) -> AbstractContextManager[_Source]:
    """The file by whichever library reads it. Raises MediaError for what is no readable file of sound."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError(path, "is a folder; give a recording")
        if not stat.S_ISREG(mode):
            raise MediaError(path, "is not a regular file; give a recording")
        if not path.stat().st_size:
            raise MediaError(path, "is an empty file; copy the recording again")
        if path.suffix.lower() not in _CONTAINERS:
            return _SoundFile(path)
    except OSError as error:
        raise MediaError(path, f"cannot be opened: {error.strerror or error}") from error
    except soundfile.LibsndfileError as error:
        unknown = error
    else:
        unknown = None
    from align_client.media.container import Container  # noqa: PLC0415  PyAV costs 13 MB that few files need

    try:
        return Container(path)
    except MediaError as error:
        if unknown is None:
            raise
        raise MediaError(path, f"{error.message}; libsndfile says: {unknown.error_string}") from error


class _StraightOn(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """Reads without seeking. soundfile seeks after every read to where it is, and a decoder then starts anew there.

    For mp3 that changes samples at every block and makes libmpg123 complain on standard error.
    """

    def seekable(self) -> bool:
        return False


class _SoundFile:
    """A file that libsndfile reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # any name, even one that is not text
        self._file = _StraightOn(descriptor, closefd=True)  # which closes it on failure too
        self.rate: int = self._file.samplerate
        self.duration_s: float | None = self._file.frames / self.rate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Mono blocks of full scale 1. Raises MediaError at damage, after what comes before it."""
        done = 0
        frames = max(1, min(round(self.rate * _BLOCK_S), _BLOCK // self._file.channels))
        while True:
            try:
                block = self._file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise self._damage(done, f"it cannot be decoded (libsndfile says: {error.error_string})") from error
            if not len(block):
                break
            mono = mix_down(block)
            finite = np.isfinite(mono)
            if not finite.all():
                sound = int(np.argmin(finite))
                yield mono[:sound]
                raise self._damage(done + sound, "it holds a value that is not a number")
            yield mono
            done += len(mono)
        if self._file.format in _EXACT_LENGTH and done < self._file.frames:
            promised = self._file.frames / self.rate
            raise self._damage(done, f"the file ends, though its header promises {promised:.1f} s")

    def _damage(self, done: int, what: str) -> MediaError:
        return MediaError(self._path, f"at second {done / self.rate:.1f} {what}; re-encode or replace the recording")
