"""Sound from the containers that libsndfile does not read: mp4, m4a, mov, mkv, webm, wma and their like.

The only module that imports PyAV, which costs 13 MB: import it where such a file has to be opened.
Places samples by the container's own times, so that second 12 here is second 12 in a player.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Self

import av
import numpy as np

from align_client.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

# Nothing that reads further files or addresses (playlists, concat, sdp) may be probed.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,mpeg,mpegts,flv,aac,ac3,eac3,amr,amrnb,amrwb,"
    "mp3,ogg,flac,wav,w64,aiff,au,caf,dv,ape,wv,tta,gsm"
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_SLACK_S = 0.02  # timestamps of some containers are rounded to milliseconds, or to a packet
_LONGEST_JUMP_S = 3600.0
_MICROSECONDS = 1_000_000
_SILENCE = 1 << 16  # samples at a time
_BLOCK_S = 0.5  # frames are shorter, and resampling them one by one takes four times as long


class Container:
    """The first-choice sound stream of a media file. Use as a context manager.

    Where sound starts after the picture, or pauses, silence fills the time. The samples that an
    encoder put before the start are dropped where the container says how many they are: mp4, m4a, mov, mkv and webm do;
    raw aac, mpeg-ts and avi do not, and are late by that priming (23 ms for aac at 44.1 kHz) here as in players.
    """

    rate: int  # Hz
    duration_s: float | None  # what the header says

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._container = av.open(str(path), options=_OPTIONS)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(path, f"is not audio or video that can be read ({_said(error)})") from error
        try:
            self._open_stream()
        except BaseException as error:
            self._container.close()
            if isinstance(error, (av.FFmpegError, OSError, ValueError)):
                raise MediaError(path, f"has sound that cannot be decoded ({_said(error)})") from error
            raise

    def _open_stream(self) -> None:
        stream = self._container.streams.best("audio")
        if stream is None or not isinstance(stream, av.AudioStream):
            raise MediaError(self._path, "has no audio stream; extract or supply the sound")
        self._stream = stream
        frames = self._frames()
        first = next(frames, None)
        if first is None or not first.sample_rate:
            raise MediaError(self._path, "has an audio stream without any sound in it")
        self._all_frames = itertools.chain([first], frames)
        self.rate = first.sample_rate
        self._exact = "mov" in self._container.format.name.split(",")  # its header is exact about length and start
        start = self._container.start_time
        self._origin_s = 0.0 if self._exact or start is None else start / _MICROSECONDS
        if stream.duration is not None and stream.time_base is not None:
            self.duration_s = float((stream.start_time or 0) * stream.time_base + stream.duration * stream.time_base)
            self.duration_s -= self._origin_s
        elif self._container.duration is not None:
            self.duration_s = self._container.duration / _MICROSECONDS
        else:
            self.duration_s = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _frames(self) -> Iterator[av.AudioFrame]:
        yield from self._container.decode(self._stream)

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All the sound, mono (the mean of the channels), float32 of full scale 1, shape [samples].

        Raises MediaError where the stream is damaged; what comes before the damage has been yielded then.
        """
        held: list[npt.NDArray[np.float32]] = []
        try:
            for piece in self._pieces():
                held.append(piece)
                if sum(map(len, held)) >= self.rate * _BLOCK_S:
                    yield np.concatenate(held)
                    held = []
        except MediaError:
            if held:
                yield np.concatenate(held)
            raise
        if held:
            yield np.concatenate(held)

    def _pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        done = 0
        end = round(self.duration_s * self.rate) if self._exact and self.duration_s is not None else None
        try:
            for frame in self._all_frames:
                if frame.sample_rate != self.rate:
                    raise self._damage(done, f"the sample rate changes from {self.rate} to {frame.sample_rate} Hz")
                for silence in self._silence_before(frame, done):
                    yield silence
                    done += len(silence)
                samples = _mono(frame)
                if end is not None:
                    samples = samples[: max(0, end - done)]
                yield samples
                done += len(samples)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._damage(done, f"it cannot be decoded ({_said(error)})") from error
        if end is not None and done < end - self.rate:
            raise self._damage(done, f"the file ends, though its header promises {end / self.rate:.1f} s")

    def _silence_before(self, frame: av.AudioFrame, done: int) -> Iterator[npt.NDArray[np.float32]]:
        """Zeros for the time between the `done` samples and the frame's own time, if it is later."""
        if frame.time is None:
            return
        ahead_s = frame.time - self._origin_s - done / self.rate
        if ahead_s > _LONGEST_JUMP_S:
            raise self._damage(done, f"its timestamps jump ahead by {ahead_s:.0f} s")
        if ahead_s <= (_SLACK_S if done else 0.0):
            return
        left = round(ahead_s * self.rate)
        while left > 0:
            yield np.zeros(min(left, _SILENCE), np.float32)
            left -= _SILENCE

    def _damage(self, done: int, what: str) -> MediaError:
        return MediaError(self._path, f"at second {done / self.rate:.1f} {what}; re-encode or replace the recording")


def _mono(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    scaled = samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        scaled -= 128
        scaled /= 128
    elif samples.dtype.kind == "i":
        scaled /= 2 ** (8 * samples.dtype.itemsize - 1)
    mono: npt.NDArray[np.float32] = scaled[0] if len(scaled) == 1 else scaled.mean(axis=0, dtype=np.float32)
    return mono


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
