"""Whether what is left of a segment may have speech. Knows samples alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.engine import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy.typing as npt

SHORTEST: Final = 1.0  # second: where the model stopped after so much, and so much is left, it is asked again
QUIET: Final = 0.1  # of the loudness of a whole segment: 20 dB below it there is no speech


def is_sound(rest: npt.NDArray[np.int16], whole: npt.NDArray[np.int16]) -> bool:
    """Whether the rest of a segment may have speech: as long as a word, and as loud as the speech before, nearly."""
    if len(rest) < SHORTEST * SAMPLE_RATE:
        return False
    return _loudness(rest) > _loudness(whole) * QUIET


def _loudness(pcm: npt.NDArray[np.int16]) -> float:
    """The root mean square of the tenth of a second, of all, that nine in ten are no louder than."""
    tenth = SAMPLE_RATE // 10
    pieces = pcm[: len(pcm) // tenth * tenth].reshape(-1, tenth).astype(np.float64)
    return float(np.quantile(np.sqrt((pieces**2).mean(axis=1)), 0.9))
