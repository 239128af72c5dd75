"""The front end of the CMU Sphinx en-us model: from int16 samples to cepstra and their differences.

Knows the model's feature parameters and nothing of phones. Noise removal runs over a batch because it is
a recursion in time; everything else runs per utterance, so no utterance can influence another.
Sources: CMU Sphinx feat.params of the model; C. Kim and R. Stern, PNCC, for the noise removal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.engine import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

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

_POWER_DECAY: Final = 0.7
_ENVELOPE_UP, _ENVELOPE_DOWN = 0.005, 0.5
_PEAK_DECAY, _PEAK_SHARE = 0.85, 0.2
_FIRST_NOISE: Final = 1 / 20  # of the first frame's power
_GAIN_RANGE: Final = (1 / 20, 20.0)
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

    def __call__(self, batch: Sequence[npt.NDArray[np.int16]]) -> list[torch.Tensor]:
        """Features of each utterance, shape [frames, 39]. Every utterance needs a sample at least."""
        return [_with_differences(cepstra - _cepstral_mean(cepstra)) for cepstra in self.cepstra(batch)]

    def cepstra(self, batch: Sequence[npt.NDArray[np.int16]]) -> list[torch.Tensor]:
        """Cepstra of each utterance, noise removed and the mean still in them, shape [frames, 13]."""
        spectra = [self._mel_spectrum(pcm) for pcm in batch]
        kept = (gain @ self._smoothing for gain in _noise_gains(spectra))
        return [torch.log(x * gain + _LOG_FLOOR) @ self._cosines for x, gain in zip(spectra, kept, strict=True)]

    def _mel_spectrum(self, pcm: npt.NDArray[np.int16]) -> torch.Tensor:
        """Power in each mel filter, shape [frames, 25]; the last frame is padded with zeros."""
        samples = torch.from_numpy(pcm.astype(np.float32))
        frames = count_frames(len(pcm))
        signal = torch.zeros((frames - 1) * HOP + WINDOW)
        signal[: len(pcm)] = samples
        signal[1 : len(pcm)] -= _PRE_EMPHASIS * samples[:-1]
        windowed = torch.zeros(frames, FFT)
        torch.mul(signal.unfold(0, WINDOW, HOP), self._window, out=windowed[:, :WINDOW])
        spectrum = torch.view_as_real(torch.fft.rfft(windowed))
        return torch.mm(spectrum.square_().flatten(1), self._filters)


def count_frames(samples: int) -> int:
    """How many frames an utterance has: the full ones and a last one padded with zeros."""
    return max(0, 1 + (samples - WINDOW) // HOP) + 1


def _with_differences(cepstra: torch.Tensor) -> torch.Tensor:
    """Cepstra with their first and second differences over time, shape [frames, 39]."""
    padded = torch.cat([cepstra[:1].expand(_REACH, -1), cepstra, cepstra[-1:].expand(_REACH, -1)])
    delta = padded[4:] - padded[:-4]  # delta[t] is centred on padded[t + 2]
    return torch.cat([cepstra, delta[1:-1], delta[2:] - delta[:-2]], dim=1)


def _cepstral_mean(cepstra: torch.Tensor) -> torch.Tensor:
    """Mean over all frames, in which those without speech count as _QUIET_SHARE of all at most.

    The model was trained on utterances with little silence around them. Speech is what is loud for its utterance.
    """
    ranked = cepstra[:, 0].sort().values
    low, high = (float(ranked[round(q * (len(ranked) - 1))]) for q in _QUANTILES)
    loud = cepstra[:, 0] >= low + _SPEECH_LEVEL * (high - low)
    speech, quiet = cepstra[loud], cepstra[~loud]
    share = min(_QUIET_SHARE, len(quiet) / len(cepstra))
    mean = speech.mean(0)
    return mean.lerp(quiet.mean(0), share) if share else mean


def _noise_gains(spectra: list[torch.Tensor]) -> list[torch.Tensor]:
    """How much of each frame and filter to keep, shape [frames, 25] each.

    The batch is laid side by side, zero-padded at the end of time, and passes through elementwise
    operations alone: a value depends on its own utterance and filter, whatever stands beside it.
    """
    lengths = [len(x) for x in spectra]
    mel = torch.zeros(max(lengths), len(spectra), FILTERS)
    for i, x in enumerate(spectra):
        mel[: len(x), i] = x
    first = mel[0] * _FIRST_NOISE
    power = _smoothed(mel)
    signal = (power - _lower_envelope(power, first)).clamp_(min=1)
    floor = _lower_envelope(signal, first)
    peak = _decaying_peak(signal)
    before = torch.zeros_like(peak)
    before[1:] = _PEAK_DECAY * peak[:-1]
    kept = torch.where(signal < _PEAK_DECAY * before, _PEAK_SHARE * before, signal)
    gain = (torch.maximum(kept, floor) / power).nan_to_num_(nan=1.0).clamp_(*_GAIN_RANGE)
    return [gain[:n, i] for i, n in enumerate(lengths)]


def _smoothed(mel: torch.Tensor) -> torch.Tensor:
    """P[t] = .7 P[t-1] + .3 x[t] from P[-1] = x[0], by doubling the span of the sum until it is all there is."""
    total = (1 - _POWER_DECAY) * mel
    total[0] = mel[0]
    weight, span = _POWER_DECAY, 1
    while span < len(mel) and weight > 1e-12:
        total = torch.cat([total[:span], total[span:] + weight * total[:-span]])
        weight, span = weight * weight, 2 * span
    return total


def _decaying_peak(signal: torch.Tensor) -> torch.Tensor:
    """peak[t] = max(.85 peak[t-1], s[t]), by doubling the span of the maximum."""
    peak = signal
    weight, span = _PEAK_DECAY, 1
    while span < len(signal) and weight > 1e-15:
        peak = torch.cat([peak[:span], torch.maximum(peak[span:], weight * peak[:-span])])
        weight, span = weight * weight, 2 * span
    return peak


def _lower_envelope(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """What follows `values` down at once and up slowly: e += .005 d or .5 d for d = value - e below and above 0.

    Each step is a leaky ReLU; its factor is a power of two, so that a fused multiply-add rounds as a plain one.
    """
    out = torch.empty_like(values)
    level = first
    slope = _ENVELOPE_UP / _ENVELOPE_DOWN
    difference = torch.empty_like(first)
    for value, now in zip(values.unbind(0), out.unbind(0), strict=True):
        torch.sub(level, value, out=difference)
        torch.nn.functional.leaky_relu_(difference, slope)
        torch.add(level, difference, alpha=-_ENVELOPE_DOWN, out=now)
        level = now
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
