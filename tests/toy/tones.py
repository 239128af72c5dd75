"""Utterances of a toy language with known times: every letter is a chord of two tones, a word is a string of letters.

Tests and the training of the toy checkpoint draw from here; knows nothing of models.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

RATE: Final = 16_000  # Hz
LETTERS: Final = "abdeiklmnosu"
FORMANTS: Final = dict(zip(LETTERS, itertools.product((350, 600, 1000), (1600, 2300, 3200, 4400)), strict=True))  # Hz
# Ranges in ms.
LETTER_MS: Final = (60, 200)
BETWEEN_LETTERS_MS: Final = (30, 60)  # a frame of silence at least, so that a letter can be said twice
BETWEEN_WORDS_MS: Final = (120, 450)
AROUND_MS: Final = (40, 400)
ATTACK_MS: Final = (4, 12)
DECAY_MS: Final = (8, 25)
SNR_DB: Final = (6, 40)  # of letters of middling loudness over noise
LOUDNESS_DB: Final = (-8, 0)  # of a letter, within an utterance
PEAK: Final = (1_500, 20_000)  # of an utterance, of int16's 32767


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """What was said, and when.

    `pcm` is int16 at `RATE`; `times` are the start and end of every word in ms, `letters` those of every letter in
    samples.
    """

    pcm: npt.NDArray[np.int16]
    words: tuple[str, ...]
    times: tuple[tuple[float, float], ...]
    letters: tuple[tuple[str, int, int], ...]

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.pcm) / RATE


def utterance(seed: int, words: Sequence[str]) -> Utterance:
    """These words, said in the way that belongs to the seed."""
    rng = np.random.default_rng(seed)
    pieces = [np.zeros(_samples(rng, AROUND_MS))]
    at = len(pieces[0])
    letters: list[tuple[str, int, int]] = []
    times: list[tuple[float, float]] = []
    for i, word in enumerate(words):
        for j, letter in enumerate(word):
            if i + j:
                pieces.append(np.zeros(_samples(rng, BETWEEN_LETTERS_MS if j else BETWEEN_WORDS_MS)))
                at += len(pieces[-1])
            pieces.append(_letter(rng, letter))
            letters.append((letter, at, at + len(pieces[-1])))
            at += len(pieces[-1])
        times.append((1000 * letters[-len(word)][1] / RATE, 1000 * at / RATE))
    pieces.append(np.zeros(_samples(rng, AROUND_MS)))
    clean = np.concatenate(pieces)
    quiet = 10 ** (-rng.uniform(*SNR_DB) / 20) * np.sqrt(0.5) * 10 ** (np.mean(LOUDNESS_DB) / 20)
    heard = clean + rng.normal(0, quiet, len(clean))
    pcm = np.round(heard / np.abs(heard).max() * rng.uniform(*PEAK)).astype(np.int16)
    return Utterance(pcm, tuple(words), tuple(times), tuple(letters))


def some_words(seed: int, count: int, letters: tuple[int, int] = (1, 5)) -> list[str]:
    """So many words of random letters, of a length in that range."""
    rng = np.random.default_rng((seed, count))
    return ["".join(rng.choice(list(LETTERS), rng.integers(letters[0], letters[1] + 1))) for _ in range(count)]


def _samples(rng: np.random.Generator, milliseconds: tuple[float, float]) -> int:
    return round(rng.uniform(*milliseconds) * RATE / 1000)


def _letter(rng: np.random.Generator, letter: str) -> npt.NDArray[np.float64]:
    """One sound: two tones, each a little off, that rise and fall together; its largest sample is about 1."""
    length = _samples(rng, LETTER_MS)
    seconds = np.arange(length) / RATE
    share = rng.uniform(0.35, 0.65)  # of the lower tone
    sound = sum(
        part * np.sin(2 * np.pi * (hertz * rng.uniform(0.97, 1.03) * seconds + rng.uniform()))
        for part, hertz in zip((share, 1 - share), FORMANTS[letter], strict=True)
    )
    rise, fall = np.arange(1, length + 1) / _samples(rng, ATTACK_MS), np.arange(length, 0, -1) / _samples(rng, DECAY_MS)
    loudness = 10 ** (rng.uniform(*LOUDNESS_DB) / 20)
    return np.asarray(loudness * sound * np.minimum(1, np.minimum(rise, fall)))
