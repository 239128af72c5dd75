"""Log-mel spectrograms as Whisper was trained on.

Knows samples and spectra; knows neither words nor models. The numbers are those of the published front end
(https://doi.org/10.48550/arXiv.2212.04356, section 2.2), the filters Slaney's (Auditory Toolbox, 1998), as librosa
computes them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.engine import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy.typing as npt

HOP: Final = 160  # samples; two hops make one frame of the model
WINDOW: Final = 400  # samples
LINEAR_HZ: Final = 200 / 3  # of one mel, below KNEE_HZ
KNEE_HZ: Final = 1000.0  # from here on mels are logarithmic
LOG_STEP: Final = np.log(6.4) / 27  # of one mel, above KNEE_HZ
FLOOR: Final = 1e-10  # of power, before the logarithm
RANGE: Final = 8.0  # decades below the loudest value, where the rest is cut off


def log_mel(pcm: npt.NDArray[np.int16], samples: int, bands: int) -> torch.Tensor:
    """The spectrogram of int16 samples, padded with zeros to `samples`: float32, shape [bands, samples // HOP].

    `samples` is a multiple of HOP, at least WINDOW, and no less than there are.
    """
    wave = torch.zeros(samples)
    wave[: len(pcm)] = torch.from_numpy(pcm).float() / 32768
    spectrum = torch.stft(wave, WINDOW, HOP, window=_window(), return_complex=True)[:, :-1]
    power = _filters(bands) @ (spectrum.real.square() + spectrum.imag.square())
    levels = power.clamp_min_(FLOOR).log10_()
    return levels.clamp_min_(float(levels.max()) - RANGE).add_(4.0).div_(4.0)


@cache
def _window() -> torch.Tensor:
    return torch.hann_window(WINDOW)


@cache
def _filters(bands: int) -> torch.Tensor:
    """Triangles of equal area, evenly spaced in mels from 0 Hz to half the rate; shape [bands, WINDOW // 2 + 1]."""
    edges = _hertz(np.linspace(0, _mel(SAMPLE_RATE / 2), bands + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    areas = 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy((np.maximum(0, np.minimum(rising, falling)) * areas[:, None]).astype(np.float32))


def _mel(hertz: float) -> float:
    if hertz < KNEE_HZ:
        return hertz / LINEAR_HZ
    return float(KNEE_HZ / LINEAR_HZ + np.log(hertz / KNEE_HZ) / LOG_STEP)


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    knee = KNEE_HZ / LINEAR_HZ
    logarithmic = KNEE_HZ * np.exp(LOG_STEP * (np.maximum(mels, knee) - knee))
    return np.where(mels < knee, LINEAR_HZ * mels, logarithmic)
