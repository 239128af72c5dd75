"""Sound inside mp4, m4a, mov, mkv, webm and others keeps the times that a player shows."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import soundfile

from align_client.media.errors import MediaError
from align_client.media.stream import SAMPLE_RATE, Cut, Span, cut, duration_ms, read

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

IMPULSES_S = (0.3, 1.0, 2.2)
SECONDS = 3.0


def clicks(rate: int) -> npt.NDArray[np.int16]:
    """Short tones that start at `IMPULSES_S`, shape [samples]."""
    samples = np.zeros(int(SECONDS * rate))
    time = np.arange(int(0.02 * rate)) / rate
    for start in IMPULSES_S:
        first = round(start * rate)
        samples[first : first + len(time)] = 0.7 * np.exp(-time / 0.003) * np.cos(2 * np.pi * 1500 * time)
    return np.rint(samples * 32767).astype(np.int16)


def lag(pcm: npt.NDArray[np.int16]) -> int:
    """How many samples at 16 kHz the clicks of `pcm` are late."""
    expected = clicks(SAMPLE_RATE)
    size = len(expected) + len(pcm)
    spectrum = np.fft.rfft(pcm, size) * np.conj(np.fft.rfft(expected.astype(float), size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)))
    return peak if peak < size // 2 else peak - size


def encode(
    path: Path,
    codec: str,
    rate: int,
    samples: npt.NDArray[np.int16],
    *,
    layout: str = "mono",
    delay_s: float | None = None,
) -> Path:
    """A media file of these samples, shape [samples]; with `delay_s` a video whose sound starts that late."""
    channels = 1 if layout == "mono" else 2
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(audio, av.AudioStream)
        audio.bit_rate = 128_000
        if delay_s is not None:
            video = container.add_stream("mpeg4", rate=10, width=32, height=32)
            assert isinstance(video, av.VideoStream)
            for number in range(int(SECONDS * 10)):
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        for first in range(0, len(samples), 1024):
            piece = np.repeat(samples[first : first + 1024], channels)[None]
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout=layout)
            frame.sample_rate = rate
            frame.pts = first + round((delay_s or 0.0) * rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.m4a", "aac", 16_000),
        ("a.m4a", "aac", 44_100),
        ("a.mp4", "aac", 48_000),
        ("a.mov", "aac", 22_050),
        ("a.mov", "pcm_s16le", 44_100),
        ("a.mkv", "aac", 44_100),
        ("a.mkv", "flac", 44_100),
        ("a.webm", "libopus", 48_000),
        ("a.avi", "pcm_s16le", 16_000),
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_a_click_stays_within_a_sample_of_its_time(
    tmp_path: Path, name: str, codec: str, rate: int, layout: str
) -> None:
    pcm = read(encode(tmp_path / name, codec, rate, clicks(rate), layout=layout))
    assert abs(lag(pcm)) <= 1
    assert np.abs(pcm).max() > 15_000


def test_the_padding_of_the_last_aac_frame_is_not_part_of_an_mp4(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", "aac", 44_100, clicks(44_100))
    assert abs(len(read(path)) - SECONDS * SAMPLE_RATE) <= 1
    assert duration_ms(path) == SECONDS * 1000
    (piece,) = cut(path, [Span(2500, 3500)])
    assert (piece.missing_ms, piece.recording_ms) == (500, 3000)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mov", "pcm_s16le"), ("a.mkv", "aac")])
def test_sound_that_starts_after_the_picture_is_preceded_by_silence(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, codec, 44_100, clicks(44_100), delay_s=0.5)
    pcm = read(path)
    assert abs(lag(pcm) - 0.5 * SAMPLE_RATE) <= 16  # mkv counts in milliseconds
    assert not pcm[: round(0.45 * SAMPLE_RATE)].any()


def test_raw_aac_is_late_by_its_priming_alone(tmp_path: Path) -> None:
    assert lag(read(encode(tmp_path / "a.aac", "aac", 44_100, clicks(44_100)))) == pytest.approx(
        1024 / 44.1 * 16, abs=1
    )


@pytest.mark.parametrize("by", ["libsndfile", "FFmpeg"])
def test_mp3_with_a_lame_tag_is_exact(tmp_path: Path, by: str) -> None:
    path = encode(tmp_path / ("a.mp3" if by == "libsndfile" else "a.mka"), "libmp3lame", 44_100, clicks(44_100))
    assert abs(lag(read(path))) <= 1


def test_mp3_without_a_lame_tag_is_late_by_encoder_and_decoder(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mp3", "libmp3lame", 44_100, clicks(44_100)).read_bytes()
    sync = whole[10 + int.from_bytes(whole[6:10]) :]  # the ID3 sizes are below 128, so the plain reading holds
    first_frame = 144 * 128_000 // 44_100 + (sync[2] >> 1 & 1)
    assert b"Info" in sync[:first_frame]
    path = tmp_path / "plain.mp3"
    path.write_bytes(sync[first_frame:])
    assert lag(read(path)) == pytest.approx(1105 / 44.1 * 16, abs=1)


def test_a_wav_that_is_named_mp4_opens(tmp_path: Path) -> None:
    samples = clicks(SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    assert np.array_equal(read((tmp_path / "a.wav").rename(tmp_path / "a.mp4")), samples)


def test_an_mp4_that_is_named_wav_opens(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "aac", 44_100, clicks(44_100)).rename(tmp_path / "a.wav")
    assert abs(lag(read(path))) <= 1


def test_a_video_without_sound_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10, width=32, height=32)
        assert isinstance(video, av.VideoStream)
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
    with pytest.raises(MediaError, match="has no audio stream"):
        read(path)


def test_an_mp4_without_its_index_has_a_reason(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "aac", 44_100, clicks(44_100))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError, match="is not audio or video that can be read"):
        read(path)


def test_a_file_that_ends_early_gives_what_is_there_and_the_second(tmp_path: Path) -> None:
    rate = 44_100
    whole = tmp_path / "whole.mov"
    with av.open(str(encode(tmp_path / "a.mov", "pcm_s16le", rate, clicks(rate)))) as source:
        options = {"movflags": "faststart"}
        with av.open(str(whole), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    data = whole.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path = tmp_path / "cut.mov"
    path.write_bytes(data[: len(data) - rate * 2 * 2])
    pieces: list[Cut] = []
    with pytest.raises(MediaError, match=r"at second (0\.9|1\.0) .*re-encode or replace the recording"):
        pieces.extend(cut(path, [Span(0, 500), Span(600, 900), Span(600, 2000)]))
    assert [piece.span.end_ms for piece in pieces] == [500, 900]


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret}\n",
    ],
)
def test_a_playlist_in_disguise_reads_no_other_file(tmp_path: Path, text: str) -> None:
    secret = encode(tmp_path / "secret.mp4", "aac", 44_100, clicks(44_100))
    path = tmp_path / "talk.mp4"
    path.write_text(text.format(secret=secret.name))
    with pytest.raises(MediaError, match="is not audio or video that can be read"):
        read(path)


def test_pyav_is_imported_only_for_a_container(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", clicks(SAMPLE_RATE), SAMPLE_RATE)
    encode(tmp_path / "a.m4a", "aac", 44_100, clicks(44_100))
    program = (
        "import sys, pathlib; from align_client.media.stream import read\n"
        "read(pathlib.Path('a.flac')); assert 'av' not in sys.modules\n"
        "read(pathlib.Path('a.m4a')); assert 'av' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
