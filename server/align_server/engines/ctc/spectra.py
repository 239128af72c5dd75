"""What models that read spectra are given: the log energies of mel bands, as Kaldi computes them.

Knows samples and bands, and no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torchaudio.compliance import kaldi

from align_server.engines.engine import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from align_server.engines.ctc.checkpoint import Spectra

LOUDEST: Final = 32768.0  # Kaldi's samples are integers of 16 bits
VARIANCE_FLOOR: Final = 1e-7  # as all feature extractors of transformers have it


def features(samples: npt.NDArray[np.float32], spectra: Spectra) -> npt.NDArray[np.float32]:
    """Values for each frame, one frame after the other, shape [frames * width], of samples within -1 to 1.

    Each band has zero mean and unit variance over the segment. They are those of transformers'
    `SeamlessM4TFeatureExtractor`, but for a last spectrum that there is no other to put together with: it is left out.
    """
    waveform = torch.from_numpy(samples)[None] * LOUDEST
    bands = kaldi.fbank(waveform, num_mel_bins=spectra.bands, sample_frequency=float(SAMPLE_RATE))
    variance, mean = torch.var_mean(bands, dim=0)
    bands = (bands - mean) / (variance + VARIANCE_FLOOR).sqrt()
    whole = len(bands) // spectra.stacked * spectra.stacked
    found: npt.NDArray[np.float32] = bands[:whole].flatten().numpy()
    return found
