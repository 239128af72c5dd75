"""Segments of noise with words, for tests of engines whose models are too small to hear anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.engine import Segment, Word, WordKind

if TYPE_CHECKING:
    import numpy.typing as npt

SLOT: Final = Word("", kind=WordKind.UNKNOWN_SOUND)
PAUSE: Final = Word("", kind=WordKind.PAUSE)


def noise(seconds: float, seed: int = 0) -> npt.NDArray[np.int16]:
    """Noise with a mean of its own, int16 at 16 kHz."""
    return np.random.default_rng(seed).normal(20, 1000, round(16000 * seconds)).astype(np.int16)


def segment(*words: str | Word, seconds: float = 2.0, seed: int = 0) -> Segment:
    """Noise in which these words are to be found."""
    items = tuple(word if isinstance(word, Word) else Word(word) for word in words)
    return Segment(f"{seconds} s, {seed}", noise(seconds, seed), items)
