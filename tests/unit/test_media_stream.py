"""What a recording becomes: int16 mono at 16 kHz, exact in time, whatever its format, in bounded memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align_client.media import stream
from align_client.media.errors import MediaError
from align_client.media.stream import SAMPLE_RATE, Cut, Span, cut, duration_ms, from_array, read

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

IMPULSES_S = (0.2, 0.75, 1.4)
SECONDS = 1.6


def clicks(rate: int, channels: int = 1) -> npt.NDArray[np.float64]:
    """Short decaying tones at `IMPULSES_S`, shape [samples, channels]."""
    samples = np.zeros(int(SECONDS * rate))
    time = np.arange(int(0.01 * rate)) / rate
    for start in IMPULSES_S:
        first = round(start * rate)
        samples[first : first + len(time)] = 0.7 * np.exp(-time / 0.001) * np.cos(2 * np.pi * 1500 * time)
    return np.repeat(samples[:, None], channels, axis=1)


def lag(pcm: npt.NDArray[np.int16], *, seconds: float = 0.0) -> int:
    """How many samples later than the clicks, moved by `seconds`, the clicks of `pcm` are."""
    expected = np.concatenate([np.zeros(round(seconds * SAMPLE_RATE)), clicks(SAMPLE_RATE)[:, 0]])
    size = len(expected) + len(pcm)
    spectrum = np.fft.rfft(pcm, size) * np.conj(np.fft.rfft(expected, size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)))
    return peak if peak < size // 2 else peak - size


def noise(samples: int, seed: int = 5) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-32768, 32768, samples, dtype=np.int16)


def wav(path: Path, samples: npt.NDArray[np.int16], rate: int = SAMPLE_RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_click_stays_within_a_sample_of_its_time_at_any_rate(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "clicks.wav"
    soundfile.write(path, clicks(rate, channels), rate)
    pcm = read(path)
    assert pcm.dtype == np.int16
    assert abs(lag(pcm)) <= 1
    assert abs(len(pcm) - SECONDS * SAMPLE_RATE) <= 1
    assert duration_ms(path) == SECONDS * 1000


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
        ("WAV", "ULAW"), ("WAV", "ALAW"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"),
        ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ],
)  # fmt: skip
def test_every_format_of_libsndfile_keeps_its_time(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / f"clicks.{container.lower()}"
    soundfile.write(path, clicks(16_000, 2), 16_000, format=container, subtype=subtype)
    pcm = read(path)
    assert abs(lag(pcm)) <= 1
    assert np.abs(pcm).max() > 15_000


def test_sixteen_bit_mono_at_16_khz_passes_bit_exact(tmp_path: Path) -> None:
    samples = noise(40_001)
    for name in ("a.wav", "a.flac"):
        assert np.array_equal(read(wav(tmp_path / name, samples)), samples)


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.array([[1000, 0], [0, -2000], [300, 100]], np.int16), SAMPLE_RATE)
    assert read(path).tolist() == [500, -1000, 200]


def test_clipped_audio_and_floats_beyond_full_scale_saturate(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.array([1.0, 1.5, -1.0, -7.0, 0.5]), SAMPLE_RATE, subtype="FLOAT")
    assert read(path).tolist() == [32767, 32767, -32768, -32768, 16384]


def test_spans_are_cut_to_the_sample(tmp_path: Path) -> None:
    samples = noise(SAMPLE_RATE * 20)
    path = wav(tmp_path / "a.wav", samples)
    spans = [Span(0, 10), Span(0, 5000), Span(4000, 4000), Span(4000, 9001), Span(4500, 4600), Span(19_000, 20_000)]
    cuts = list(cut(path, spans))
    assert [piece.span for piece in cuts] == spans
    for piece in cuts:
        assert np.array_equal(piece.pcm, samples[piece.span.start_ms * 16 : piece.span.end_ms * 16])
        assert (piece.missing_ms, piece.recording_ms) == (0, None)


def test_a_span_past_the_end_says_how_much_is_missing_and_how_long_the_recording_is(tmp_path: Path) -> None:
    samples = noise(SAMPLE_RATE * 2)
    path = wav(tmp_path / "a.wav", samples)
    within, across, after = cut(path, [Span(0, 2000), Span(1500, 2600), Span(5000, 6000)])
    assert (within.missing_ms, within.recording_ms) == (0, None)
    assert np.array_equal(across.pcm, samples[24_000:])
    assert (across.missing_ms, across.recording_ms) == (600, 2000)
    assert (len(after.pcm), after.missing_ms, after.recording_ms) == (0, 1000, 2000)


def test_a_span_to_the_end_of_a_recording_of_odd_length_lacks_nothing(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", noise(SAMPLE_RATE + 7))
    assert duration_ms(path) == 1001
    (piece,) = cut(path, [Span(0, 1001)])
    assert piece.missing_ms == 0
    assert len(piece.pcm) == SAMPLE_RATE + 7


@pytest.mark.parametrize("spans", [[Span(5, 4)], [Span(-1, 4)], [Span(9, 20), Span(8, 30)]])
def test_spans_that_are_reversed_negative_or_unsorted_are_refused(tmp_path: Path, spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="Span"):
        cut(wav(tmp_path / "a.wav", noise(100)), spans)


def test_no_spans_open_no_file(tmp_path: Path) -> None:
    assert list(cut(tmp_path / "absent.wav", [])) == []


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, npt.NDArray[np.int16]]]:
    folder = tmp_path_factory.mktemp("recordings")
    exact = wav(folder / "exact.wav", noise(SAMPLE_RATE * 6 + 11))
    resampled = folder / "resampled.flac"
    soundfile.write(resampled, np.stack([noise(44_100 * 6), noise(44_100 * 6, 6)], axis=1), 44_100)
    lossy = [folder / "lossy.mp3", folder / "lossy.ogg"]
    for path in lossy:
        soundfile.write(path, noise(SAMPLE_RATE * 6) / 65536, SAMPLE_RATE)
    return [(path, read(path)) for path in (exact, resampled, *lossy)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edges=st.lists(st.tuples(st.integers(0, 7000), st.integers(0, 7000)), min_size=1, max_size=12),
    block=st.sampled_from([997, 16_000, 1 << 17]),
)
def test_cutting_equals_slicing_the_whole(
    recordings: list[tuple[Path, npt.NDArray[np.int16]]], edges: list[tuple[int, int]], block: int
) -> None:
    spans = sorted((Span(min(pair), max(pair)) for pair in edges), key=lambda span: span.start_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_BLOCK", block)
        for path, whole in recordings:
            for piece in cut(path, spans):
                assert np.array_equal(piece.pcm, whole[piece.span.start_ms * 16 : piece.span.end_ms * 16])


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.flac"])
def test_reading_in_blocks_decodes_as_one_reading_does(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(SAMPLE_RATE * 8) / 65536, SAMPLE_RATE)
    whole, _ = soundfile.read(path, dtype="float32")
    assert np.abs(read(path).astype(int) - from_array(whole, SAMPLE_RATE)).max() <= 1
    assert not capfd.readouterr().err  # libmpg123 writes there when it loses its place


def test_a_recording_is_read_once_and_not_beyond_the_last_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav(tmp_path / "a.wav", noise(SAMPLE_RATE * 60))
    frames: list[int] = []
    opened: list[object] = []

    class Counting(stream._StraightOn):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(self)
            super().__init__(*args, **options)

        def read(self, *args: object, **options: object) -> npt.NDArray[np.float32]:
            block: npt.NDArray[np.float32] = super().read(*args, **options)
            frames.append(len(block))
            return block

    monkeypatch.setattr(stream, "_BLOCK", 1000)
    monkeypatch.setattr(stream, "_StraightOn", Counting)
    spans = [Span(start, start + 5000) for start in range(0, 25_000, 1000)]
    assert len(list(cut(path, spans))) == len(spans)
    assert len(opened) == 1
    assert sum(frames) == SAMPLE_RATE * 29


def open_files() -> set[str]:
    return {os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")}  # noqa: PTH208  links


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_closing_the_iterator_closes_the_file(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", noise(SAMPLE_RATE * 30))
    pieces = cut(path, [Span(0, 100), Span(20_000, 20_100)])
    next(pieces)
    assert str(path) in open_files()
    pieces.close()
    assert str(path) not in open_files()
    list(cut(path, [Span(0, 100)]))
    assert str(path) not in open_files()


def taken_before_failing(path: Path, spans: list[Span]) -> tuple[list[Cut], str]:
    pieces: list[Cut] = []
    with pytest.raises(MediaError) as caught:
        pieces.extend(cut(path, spans))
    return pieces, str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_value_that_is_no_number_fails_only_the_spans_after_it(tmp_path: Path, rate: int, value: float) -> None:
    path = tmp_path / "nan.wav"
    samples = np.full(rate * 10, 0.25, np.float32)
    samples[int(rate * 4.5)] = value
    soundfile.write(path, samples, rate, subtype="FLOAT")
    spans = [Span(0, 1000), Span(3500, 4500), Span(4000, 5000), Span(6000, 7000)]
    pieces, message = taken_before_failing(path, spans)
    assert "at second 4.5 it holds a value that is not a number" in message
    assert [piece.span.end_ms for piece in pieces] == [1000, 4500]
    assert all(len(piece.pcm) == SAMPLE_RATE for piece in pieces)


def test_a_damaged_flac_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.flac", noise(SAMPLE_RATE * 60))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    pieces, message = taken_before_failing(path, [Span(0, 1000), Span(20_000, 25_000), Span(29_000, 40_000)])
    assert [piece.span.end_ms for piece in pieces] == [1000, 25_000]
    assert re.search(r"at second (29|30)\.\d .*re-encode or replace", message)


def test_a_wav_that_was_cut_off_is_a_shorter_recording(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", noise(SAMPLE_RATE * 10))
    path.write_bytes(path.read_bytes()[: 44 + SAMPLE_RATE * 2 * 6])
    (piece,) = cut(path, [Span(5000, 8000)])
    assert (piece.missing_ms, piece.recording_ms) == (2000, 6000)


def test_what_is_not_audio_is_named_with_what_both_libraries_say(tmp_path: Path) -> None:
    path = tmp_path / "letter.wav"
    path.write_text("Dear reader, this is no recording.\n" * 20)
    with pytest.raises(MediaError, match=r"is not audio or video that can be read.*libsndfile says"):
        read(path)


@pytest.mark.parametrize("call", [read, duration_ms, lambda path: list(cut(path, [Span(0, 10)]))])
def test_unreadable_files_have_a_reason(tmp_path: Path, call: object) -> None:
    assert callable(call)
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "fifo.wav")
    for path, said in [
        (tmp_path / "absent.wav", "No such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.wav", "empty file"),
        (tmp_path / "fifo.wav", "not a regular file"),
    ]:
        with pytest.raises(MediaError, match=said) as caught:
            call(path)
        assert str(path) in str(caught.value)


def test_a_recording_of_no_length_has_a_reason(tmp_path: Path) -> None:
    for rate in (16_000, 44_100):
        path = wav(tmp_path / f"{rate}.wav", np.zeros(0, np.int16), rate)
        with pytest.raises(MediaError, match="holds no audio"):
            read(path)
        with pytest.raises(MediaError, match="holds no audio"):
            list(cut(path, [Span(0, 10)]))


def test_a_sample_rate_that_no_recording_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="its header says 3 Hz"):
        read(wav(tmp_path / "a.wav", noise(100), 3))


@pytest.mark.parametrize("name", ["a talk.wav", "趙天恩.wav", os.fsdecode(b"caf\xe9.wav")])
def test_any_file_name_opens(tmp_path: Path, name: str) -> None:
    samples = noise(100)
    plain = wav(tmp_path / "plain.wav", samples)
    assert np.array_equal(read(plain.rename(tmp_path / name)), samples)


def test_an_array_at_16_khz_is_taken_as_it_is() -> None:
    samples = noise(1000)
    assert np.array_equal(from_array(samples, SAMPLE_RATE), samples)
    floats = samples / 32768
    assert np.array_equal(from_array(floats, SAMPLE_RATE), samples)
    assert np.array_equal(from_array(floats.astype(np.float32), SAMPLE_RATE), samples)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (22_050, 2), (48_000, 1), (48_000, 2)])
def test_an_array_is_resampled_and_mixed_down_in_time(rate: int, channels: int) -> None:
    assert abs(lag(from_array(clicks(rate, channels), rate))) <= 1


def test_an_array_and_its_file_become_the_same(tmp_path: Path) -> None:
    samples = noise(44_100)
    assert np.array_equal(from_array(samples, 44_100), read(wav(tmp_path / "a.wav", samples, 44_100)))


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (np.zeros(10, np.int32), 16_000, "int32"),
        (np.zeros((2, 16_000), np.float32), 16_000, "shape"),
        (np.zeros((2, 2, 2), np.float32), 16_000, "shape"),
        (np.zeros(0, np.int16), 16_000, "no samples"),
        (np.zeros(10, np.int16), 16, "sample rate of 16"),
        (np.array([0, 0, np.nan, np.nan]), 16_000, "sample 2 "),
        (np.array([[0, 0], [0, np.inf]]), 16_000, "sample 1 "),
        (np.array([0, 12_000.0]), 16_000, "reaches 12000"),
    ],
)
def test_arrays_that_are_not_audio_have_a_reason(samples: npt.NDArray[np.generic], rate: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_array(samples, rate)


CUT_AN_HOUR = """
import pathlib, re, sys
from align_client.media.stream import Span, cut
spans = [Span(start, start + 15_000) for start in range(0, 3_600_000, 10_000)]
samples = sum(len(piece.pcm) for piece in cut(pathlib.Path(sys.argv[1]), spans))
assert samples == 16 * (359 * 15_000 + 10_000), samples
assert "av" not in sys.modules
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would include the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory in /proc")
def test_cutting_an_hour_of_stereo_stays_under_80_mb(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    soundfile.write(path, np.zeros((1, 2), np.int16), 44_100)
    header = bytearray(path.read_bytes())
    size = 3600 * 44_100 * 4
    header[4:8] = (size + 36).to_bytes(4, "little")
    header[40:44] = size.to_bytes(4, "little")
    path.write_bytes(header[:44])
    os.truncate(path, size + 44)
    result = subprocess.run([sys.executable, "-c", CUT_AN_HOUR, path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 80
