"""The front end computes what CMU Sphinx computes, for each utterance as if it were alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pocketsphinx
import pytest

from align_server.engines.sphinx.features import FEATURES, FILTERS, FrontEnd, count_frames, noise_gains

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Pcm = npt.NDArray[np.int16]


def sound(seconds: float, seed: int = 0) -> Pcm:
    """Noise whose level and colour change several times a second, so that nothing about it is stationary."""
    rng = np.random.default_rng(seed)
    n = round(16000 * seconds)
    level = np.repeat(10 ** rng.uniform(0.5, 3.8, 1 + n // 2000), 2000)[:n]
    noise = rng.normal(0, 1, n)
    coloured = np.where(np.arange(n) // 3000 % 2, noise, np.convolve(noise, np.ones(8) / 3, "same"))
    return (level * coloured).clip(-32768, 32767).astype(np.int16)


def sphinx_cepstra(pcm: Pcm, folder: Path) -> npt.NDArray[np.float32]:
    """What pocketsphinx's own front end writes to its log."""
    decoder = pocketsphinx.Decoder(samprate=16000, lm=None, loglevel="FATAL", mfclogdir=str(folder))
    decoder.set_align_text("hello")
    decoder.start_utt()
    decoder.process_raw(pcm.tobytes(), full_utt=True)
    decoder.end_utt()
    (log,) = folder.iterdir()
    return np.fromfile(log, dtype=">f4", offset=4).reshape(-1, 13).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.345])
def test_cepstra_are_those_of_pocketsphinx(tmp_path: Path, seconds: float) -> None:
    pcm = sound(seconds)
    ours = FrontEnd().cepstra(pcm)
    np.testing.assert_allclose(ours.numpy(), sphinx_cepstra(pcm, tmp_path), atol=2e-3)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (409, 1), (410, 2), (569, 2), (570, 3), (16000, 99)])
def test_a_frame_starts_every_10_ms_and_the_last_is_padded(samples: int, frames: int) -> None:
    assert count_frames(samples) == frames
    features = FrontEnd()(sound(1)[:samples])
    assert features.shape == (frames, FEATURES)
    assert features.isfinite().all()


@pytest.mark.parametrize("value", [0, 1, -32768, 32767])
def test_a_constant_signal_has_finite_features(value: int) -> None:
    features = FrontEnd()(np.full(8000, value, np.int16))
    assert features.isfinite().all()


def test_silence_around_an_utterance_hardly_moves_its_features() -> None:
    pcm = sound(2)
    quiet = np.random.default_rng(1).normal(0, 2, 32000).astype(np.int16)
    surrounded = np.concatenate([quiet, pcm, quiet])
    alone, padded = FrontEnd()(pcm), FrontEnd()(surrounded)
    inside = padded[200 : 200 + len(alone)]
    shift = (inside[20:-20, 0] - alone[20:-20, 0]).mean().abs()
    naive = (FrontEnd().cepstra(surrounded)[:, 0].mean() - FrontEnd().cepstra(pcm)[:, 0].mean()).abs()
    assert shift < naive / 3


def test_noise_removal_is_the_recursion_that_it_stands_for() -> None:
    mel = np.random.default_rng(0).gamma(0.3, 1e6, (300, FILTERS)).astype(np.float32)
    np.testing.assert_allclose(noise_gains(mel), gains_frame_by_frame(mel.astype(np.float64)), rtol=2e-3)


def gains_frame_by_frame(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Noise removal as it is defined, one frame after the other."""

    def envelope(level: npt.NDArray[np.float64], value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(value >= level, 0.995 * level + 0.005 * value, 0.5 * level + 0.5 * value)

    power, noise, floor, peak = mel[0], mel[0] / 20, mel[0] / 20, np.zeros(FILTERS)
    out = []
    for x in mel:
        power = 0.7 * power + 0.3 * x
        noise = envelope(noise, power)
        signal = np.maximum(power - noise, 1)
        floor = envelope(floor, signal)
        peak = 0.85 * peak
        kept = np.where(signal < 0.85 * peak, 0.2 * peak, signal)
        peak = np.maximum(peak, signal)
        out.append((np.maximum(kept, floor) / power).clip(1 / 20, 20))
    return np.array(out)
