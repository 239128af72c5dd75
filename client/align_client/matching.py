"""Which words of a transcript are which of those that were heard: the best alignment of two lists of words.

Knows words alone, neither times nor CHAT. Two words are alike by the pairs of letters that they share (Dice's
coefficient). Of all alignments in the order of both lists that one is taken whose pairs have the most letters in
common, and pairs that follow one another directly are worth more, as a word alone is often one that is said everywhere.
Dynamic programming row by row, of which only each BLOCK-th row is kept, and the others made again on the way back:
10,000 words by 10,000 take 3 s and 26 MB.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Row = npt.NDArray[np.float32]

BLOCK: Final = 128  # rows
FEATURES: Final = 512  # kinds of pairs of letters; more than there are share one
LIKE: Final = 0.55  # of the pairs of letters: words that share less are two
FOLLOWS: Final = np.float32(3.0)  # letters: what it is worth that a pair directly follows another


@dataclass(frozen=True, slots=True)
class Match:
    """The word that was heard, by its index, and how alike the two are: LIKE to 1."""

    heard: int
    likeness: float


def match(said: Sequence[str], heard: Sequence[str]) -> list[Match | None]:
    """For each word that should be said the one that was heard, None where there is none; their order is kept.

    Words are compared as they are: give them in one case and without punctuation. An empty one is like no other.
    """
    return _Matcher(said, heard).match()


class _Matcher:
    def __init__(self, said: Sequence[str], heard: Sequence[str]) -> None:
        self._said = said
        self._numbers: dict[str, int] = {}  # of pairs of letters
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(heard))}
        self._ids = np.array([vocabulary[word] for word in heard], np.intp)
        self._features = self._marked(list(vocabulary))
        self._sizes = self._features.sum(axis=1)

    def match(self) -> list[Match | None]:
        found: list[Match | None] = [None] * len(self._said)
        if not len(self._ids):
            return found
        columns = len(self._ids)
        best, ending = np.zeros(columns + 1, np.float32), np.full(columns + 1, -np.inf, np.float32)
        blocks = range(0, len(self._said), BLOCK)
        kept = []
        for first in blocks:
            kept.append((best, ending))
            for alike, letters in self._rows(first, columns):
                best, ending = _next(best, ending, alike, letters)
        is_pair = False  # whether the way back goes through a pair of words at this row and column
        for first, (top, above) in zip(reversed(blocks), reversed(kept), strict=True):
            bests, endings, likeness = [top[: columns + 1]], [above[: columns + 1]], []
            for alike, letters in self._rows(first, columns):
                best, ending = _next(bests[-1], endings[-1], alike, letters)
                bests.append(best)
                endings.append(ending)
                likeness.append(alike)
            row = len(likeness)
            while row and columns:
                if not is_pair and bests[row][columns] == bests[row - 1][columns]:
                    row -= 1
                elif not is_pair and bests[row][columns] == bests[row][columns - 1]:
                    columns -= 1
                else:
                    row, columns = row - 1, columns - 1
                    found[first + row] = Match(columns, float(likeness[row][columns]))
                    is_pair = bool(endings[row][columns] + FOLLOWS >= bests[row][columns])
        return found

    def _rows(self, first: int, columns: int) -> list[tuple[Row, int]]:
        """For each word of a block how alike it and the first `columns` that were heard are, and its letters."""
        words = self._said[first : first + BLOCK]
        marked = self._marked(words)
        shared = marked @ self._features.T
        sizes = marked.sum(axis=1)[:, None] + self._sizes
        alike = np.divide(2 * shared, sizes, out=np.zeros_like(shared), where=sizes > 0)
        alike[alike < LIKE] = -np.inf
        ids = self._ids[:columns]
        return [(row[ids], len(word)) for row, word in zip(alike, words, strict=True)]

    def _marked(self, words: Sequence[str]) -> Row:
        """Which pairs of letters each word has, its edges among them, as 0 or 1: shape [words, FEATURES]."""
        marked = np.zeros((len(words), FEATURES), np.float32)
        for row, word in enumerate(words):
            for pair in map("".join, itertools.pairwise(f"\x02{word}\x03") if word else ()):
                marked[row, self._numbers.setdefault(pair, len(self._numbers)) % FEATURES] = 1
        return marked


def _next(best: Row, ending: Row, alike: Row, letters: int) -> tuple[Row, Row]:
    """A row from the one before: what the best way to each column is worth, and the best that ends in a pair there."""
    pairs = np.full_like(ending, -np.inf)
    np.maximum(best[:-1], ending[:-1] + FOLLOWS, out=pairs[1:])
    pairs[1:] += alike * np.float32(letters or 1)  # of an empty word nothing is alike
    return np.maximum.accumulate(np.maximum(best, pairs)), pairs
