"""The front end of the CMU Sphinx en-us model: from int16 samples to cepstra and their differences.

Knows the model's feature parameters and nothing of phones.
Sources: CMU Sphinx feat.params of the model; C. Kim and R. Stern, PNCC, for the noise removal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.engine import SAMPLE_RATE
from align_server.engines.jit import kernel
from align_server.engines.scripted import scripted

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

HOP: Final = 160  # samples
WINDOW: Final = 410  # samples
FFT: Final = 512
FILTERS: Final = 25
CEPSTRA: Final = 13
FEATURES: Final = 3 * CEPSTRA  # cepstra, differences, second differences
BOUNDARY_MS: Final = (
    1000 * (WINDOW - HOP) / 2 / SAMPLE_RATE
)  # frame f begins this long after f hops: between two centres

_LOWEST_HZ, _HIGHEST_HZ = 130.0, 6800.0
_PRE_EMPHASIS: Final = 0.97
_LIFTER: Final = 22
_LOG_FLOOR: Final = 1e-4
_REACH: Final = 3  # frames that the differences look to either side

# Noise removal computes in single precision throughout, where a plain number would make it double.
_POWER_DECAY: Final = 0.7
_POWER_SHARE: Final = np.float32(1 - _POWER_DECAY)
_ENVELOPE_DOWN: Final = np.float32(0.5)
_ENVELOPE_UP: Final = np.float32(0.005 / 0.5)  # of _ENVELOPE_DOWN
_PEAK_DECAY: Final = 0.85
_PEAK_LEFT: Final = np.float32(_PEAK_DECAY)
_PEAK_SHARE: Final = np.float32(0.2)
_FIRST_NOISE: Final = np.float32(1 / 20)  # of the first frame's power
_LEAST_SIGNAL: Final = np.float32(1)
_LEAST_GAIN, _MOST_GAIN = np.float32(1 / 20), np.float32(20)
_GAIN_REACH: Final = 4  # filters
_QUANTILES: Final = (0.05, 0.95)
_SPEECH_LEVEL: Final = 0.3  # of the way between these quantiles of c0
_QUIET_SHARE: Final = 0.1


class FrontEnd:
    """Feature extraction on the CPU. Immutable after construction, so any number of threads may share one."""

    def __init__(self) -> None:
        n = torch.arange(WINDOW, dtype=torch.float64)
        self._window = (0.54 - 0.46 * torch.cos(2 * math.pi * n / (WINDOW - 1))).float()
        self._filters = _mel_filters().repeat_interleave(2, dim=0)  # for the real and the imaginary part of each bin
        self._smoothing = _smoothing()
        self._cosines = _cosines()

    def __call__(self, pcm: npt.NDArray[np.int16]) -> torch.Tensor:
        """Features of an utterance of a sample or more, shape [frames, 39]."""
        return _with_differences(self.cepstra(pcm))

    def cepstra(self, pcm: npt.NDArray[np.int16]) -> torch.Tensor:
        """Cepstra of an utterance, noise removed and the mean still in them, shape [frames, 13]."""
        samples = torch.from_numpy(pcm.astype(np.float32))
        mel = _mel_spectrum(samples, count_frames(len(pcm)), self._window, self._filters)
        gains = torch.from_numpy(noise_gains(mel.numpy()))
        return _cepstra(mel, gains, self._smoothing, self._cosines)


def count_frames(samples: int) -> int:
    """How many frames an utterance has: the full ones and a last one padded with zeros."""
    return max(0, 1 + (samples - WINDOW) // HOP) + 1


@scripted
def _mel_spectrum(  # noqa: PLR0913, PLR0917  TorchScript takes what is constant as defaults
    samples: torch.Tensor,
    frames: int,
    window: torch.Tensor,
    filters: torch.Tensor,
    hop: int = HOP,
    points: int = FFT,
    emphasis: float = _PRE_EMPHASIS,
) -> torch.Tensor:
    """Power in each mel filter, shape [frames, 25]; the last frame is padded with zeros."""
    width = len(window)
    signal = torch.zeros((frames - 1) * hop + width)
    signal[: len(samples)] = samples
    signal[1 : len(samples)] -= emphasis * samples[:-1]
    windowed = torch.zeros(frames, points)
    torch.mul(signal.unfold(0, width, hop), window, out=windowed[:, :width])
    spectrum = torch.view_as_real(torch.fft.rfft(windowed))
    return torch.mm(spectrum.square_().flatten(1), filters)


@scripted
def _cepstra(
    mel: torch.Tensor,
    gains: torch.Tensor,
    smoothing: torch.Tensor,
    cosines: torch.Tensor,
    floor: float = _LOG_FLOOR,
) -> torch.Tensor:
    """Cepstra of a power spectrum, shape [frames, 13]."""
    return torch.log(mel * (gains @ smoothing) + floor) @ cosines


def _cepstral_mean(
    cepstra: torch.Tensor,
    quantiles: tuple[float, float] = _QUANTILES,
    level: float = _SPEECH_LEVEL,
    quiet_share: float = _QUIET_SHARE,
) -> torch.Tensor:
    """Mean over all frames, in which those without speech count as _QUIET_SHARE of all at most.

    The model was trained on utterances with little silence around them. Speech is what is loud for its utterance.
    """
    ranked = cepstra[:, 0].sort()[0]
    last = len(ranked) - 1
    low = float(ranked[int(round(quantiles[0] * last))])  # noqa: RUF046  TorchScript's round gives a float
    high = float(ranked[int(round(quantiles[1] * last))])  # noqa: RUF046
    loud = cepstra[:, 0] >= low + level * (high - low)
    speech, quiet = cepstra[loud], cepstra[~loud]
    share = min(quiet_share, len(quiet) / len(cepstra))
    mean = speech.mean(0)
    return mean.lerp(quiet.mean(0), share) if share > 0 else mean


@scripted
def _with_differences(cepstra: torch.Tensor, reach: int = _REACH) -> torch.Tensor:
    """Cepstra about their mean with their first and second differences over time, shape [frames, 39]."""
    cepstra = cepstra - _cepstral_mean(cepstra)
    padded = torch.cat([cepstra[:1].expand(reach, -1), cepstra, cepstra[-1:].expand(reach, -1)])
    delta = padded[4:] - padded[:-4]  # delta[t] is centred on padded[t + 2]
    return torch.cat([cepstra, delta[1:-1], delta[2:] - delta[:-2]], dim=1)


@kernel
def noise_gains(mel: Floats) -> Floats:
    """How much to keep of each frame and filter of a power spectrum, both of shape [frames, 25]."""
    frames = len(mel)
    first = np.empty(FILTERS, np.float32)
    for i in range(FILTERS):
        first[i] = _FIRST_NOISE * mel[0, i]
    power = _smoothed(mel)
    noise = _lower_envelope(power, first)
    signal = noise
    for t in range(frames):
        for i in range(FILTERS):
            signal[t, i] = max(power[t, i] - noise[t, i], _LEAST_SIGNAL)
    floor = _lower_envelope(signal, first)
    peak = _decaying_peak(signal)
    gain = np.empty_like(mel)
    for t in range(frames):
        for i in range(FILTERS):
            before = _PEAK_LEFT * peak[t - 1, i] if t else np.float32(0)
            kept = _PEAK_SHARE * before if signal[t, i] < _PEAK_LEFT * before else signal[t, i]
            gain[t, i] = min(max(max(kept, floor[t, i]) / power[t, i], _LEAST_GAIN), _MOST_GAIN)
    return gain


@kernel
def _smoothed(mel: Floats) -> Floats:
    """P[t] = .7 P[t-1] + .3 x[t] from P[-1] = x[0], by doubling the span of the sum until it is all there is."""
    total = np.empty_like(mel)
    for t in range(len(mel)):
        for i in range(FILTERS):
            total[t, i] = _POWER_SHARE * mel[t, i] if t else mel[t, i]
    weight, span = _POWER_DECAY, 1
    while span < len(mel) and weight > 1e-12:
        share = np.float32(weight)
        for t in range(len(mel) - 1, span - 1, -1):
            for i in range(FILTERS):
                total[t, i] += share * total[t - span, i]
        weight, span = weight * weight, 2 * span
    return total


@kernel
def _decaying_peak(signal: Floats) -> Floats:
    """peak[t] = max(.85 peak[t-1], s[t]), by doubling the span of the maximum."""
    peak = signal.copy()
    weight, span = _PEAK_DECAY, 1
    while span < len(peak) and weight > 1e-15:
        share = np.float32(weight)
        for t in range(len(peak) - 1, span - 1, -1):
            for i in range(FILTERS):
                peak[t, i] = max(peak[t, i], share * peak[t - span, i])
        weight, span = weight * weight, 2 * span
    return peak


@kernel
def _lower_envelope(values: Floats, first: Floats) -> Floats:
    """What follows `values` down at once and up slowly: e += .005 d or .5 d for d = value - e below and above 0."""
    out = np.empty_like(values)
    level = first.copy()
    for t in range(len(values)):
        for i in range(FILTERS):
            above = level[i] - values[t, i]
            level[i] -= _ENVELOPE_DOWN * (above if above > 0 else _ENVELOPE_UP * above)
            out[t, i] = level[i]
    return out


def _mel_filters() -> torch.Tensor:
    """Triangular filters of unit area on bins of the power spectrum, shape [257, 25]."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    width = SAMPLE_RATE / FFT
    low, high = mel(_LOWEST_HZ), mel(_HIGHEST_HZ)
    points = (low + (high - low) * i / (FILTERS + 1) for i in range(FILTERS + 2))
    edges = [int(700 * (10 ** (point / 2595) - 1) / width + 0.5) * width for point in points]
    hz = np.arange(FFT // 2 + 1) * width
    filters = np.zeros((len(hz), FILTERS))
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (hz - left) / (centre - left), (right - hz) / (right - centre)
        filters[:, i] = np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)
    return torch.from_numpy(filters).float()


def _smoothing() -> torch.Tensor:
    """Mean over the neighbouring filters, as a matrix to multiply gains with from the right."""
    distance = (torch.arange(FILTERS)[:, None] - torch.arange(FILTERS)).abs()
    near = (distance <= _GAIN_REACH).float()
    return near / near.sum(0)


def _cosines() -> torch.Tensor:
    """Orthonormal DCT-II and liftering in one matrix, shape [25, 13]."""
    i = np.arange(CEPSTRA)
    angles = np.pi * (np.arange(FILTERS)[:, None] + 0.5) * i / FILTERS
    scale = np.where(i == 0, math.sqrt(1 / FILTERS), math.sqrt(2 / FILTERS))
    lifter = 1 + _LIFTER / 2 * np.sin(np.pi * i / _LIFTER)
    return torch.from_numpy(np.cos(angles) * scale * lifter).float()
