"""Trains the grapheme-to-phoneme model from the dictionary and measures it on words it has not seen.

Aligns letters with phones by expectation maximisation over graphones, then counts a joint n-gram with
interpolated Kneser-Ney discounts (Chen and Goodman 1999). Writes g2p.npz and g2p.json; run as
python -m align_server.engines.sphinx.train_g2p.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click
import numpy as np

from align_server.engines.sphinx.g2p import END, G2P, MODEL, START, NGram, save
from align_server.engines.sphinx.lexicon import dictionary_path, read_dictionary

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Ints: TypeAlias = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

HELD_OUT = 600  # words
ORDER = 6
ROUNDS = 8  # of expectation maximisation
SHAPES = ((1, 0), (1, 1), (1, 2), (2, 1))  # letters and phones of a graphone
MIN_GRAPHONE = 3.0  # expected uses; rarer graphones are slips of the dictionary
UNIFORM = 1e-3  # share of the unigram that every graphone gets alike


@dataclass(frozen=True, slots=True)
class Entry:
    """A word of the dictionary with one of its pronunciations."""

    word: str
    phones: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """Share of held-out words, and of their phones, that are wrong; against the closest listed pronunciation."""

    word: float
    phone: float
    best_of_three_word: float


def split(entries: dict[str, str]) -> tuple[list[Entry], list[str]]:
    """The pronunciations to train on, and the words held out: those whose checksums are the smallest.

    Words with an apostrophe are left out of both: "angle's" would tell how "angle" is said.
    """
    words = [word for word in entries if re.fullmatch("[a-z]+", word)]
    held_out = sorted(words, key=lambda word: (zlib.crc32(word.encode()), word))[:HELD_OUT]
    kept = set(words).difference(held_out)
    lines = ((word, line) for word in words if word in kept for line in entries[word].split("\n"))
    return [Entry(word, tuple(line.split())) for word, line in lines], sorted(held_out)


class Aligner:
    """Expectation maximisation of a unigram model of graphones.

    A graphone's code is its letters' code times `len(self.phone_pairs)` plus its phones' code; words of equal size
    are worked through together.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.letters = sorted({letter for entry in entries for letter in entry.word})
        self.phones = sorted({phone for entry in entries for phone in entry.phones})
        self._n_letters, self._n_phones = len(self.letters) + 1, len(self.phones) + 1  # code 0 stands for none
        letter_code = {letter: code for code, letter in enumerate(self.letters, start=1)}
        phone_code = {phone: code for code, phone in enumerate(self.phones, start=1)}
        sizes: dict[tuple[int, int], list[Entry]] = defaultdict(list)
        for entry in entries:
            sizes[len(entry.word), len(entry.phones)].append(entry)
        self._groups = [
            (
                np.array([[letter_code[c] for c in entry.word] for entry in group]),
                np.array([[phone_code[p] for p in entry.phones] for entry in group]),
            )
            for _, group in sorted(sizes.items())
        ]
        self._p = np.ones(self._n_letters**2 * self._n_phones**2)
        self._p_of_one = 1.0  # of a graphone used once

    def train(self, rounds: int) -> None:
        """Run `rounds` of expectation maximisation, then forget the rare graphones."""
        for number in range(1, rounds + 1):
            logger.info("alignment round %d: log likelihood %.0f", number, self.train_once())
        self._p[self._p < MIN_GRAPHONE * self._p_of_one] = 0.0

    def train_once(self) -> float:
        """One round of expectation maximisation; the log likelihood before it."""
        counts, log_likelihood = self._expect()
        self._p = counts / counts.sum()
        self._p_of_one = 1.0 / counts.sum()
        return log_likelihood

    def _codes(self, letters: Ints, phones: Ints, i: int, j: int, shape: tuple[int, int]) -> Ints:
        """The code of the graphone of that shape ending before letter i and phone j, for each word of a group."""
        n_l, n_p = shape
        code = letters[:, i - 1] if n_l == 1 else letters[:, i - 2] * self._n_letters + letters[:, i - 1]
        code = code * self._n_phones**2
        if n_p == 1:
            code = code + phones[:, j - 1]
        elif n_p == 2:
            code = code + phones[:, j - 2] * self._n_phones + phones[:, j - 1]
        return code

    def _expect(self) -> tuple[Floats, float]:
        """Expected uses of each graphone by the forward-backward algorithm, and the log likelihood of what it fits."""
        counts = np.zeros_like(self._p)
        log_likelihood = 0.0
        for letters, phones in self._groups:
            forward = self._forward(letters, phones)
            n, m = letters.shape[1], phones.shape[1]
            total = forward[n, m]
            fits = total > 0
            log_likelihood += float(np.log(total[fits]).sum())
            backward = np.zeros_like(forward)
            backward[n, m, fits] = 1.0 / total[fits]
            for i in range(n, 0, -1):
                for j in range(m, -1, -1):
                    for shape in SHAPES:
                        a, b = i - shape[0], j - shape[1]
                        if a < 0 or b < 0:
                            continue
                        codes = self._codes(letters, phones, i, j, shape)
                        flow = self._p[codes] * backward[i, j]
                        backward[a, b] += flow
                        np.add.at(counts, codes, flow * forward[a, b])
        return counts, log_likelihood

    def _forward(self, letters: Ints, phones: Ints) -> Floats:
        """Probability of reaching each cell, shape [letters + 1, phones + 1, words]."""
        n, m = letters.shape[1], phones.shape[1]
        forward = np.zeros((n + 1, m + 1, len(letters)))
        forward[0, 0] = 1.0
        for i in range(1, n + 1):
            for j in range(m + 1):
                for shape in SHAPES:
                    a, b = i - shape[0], j - shape[1]
                    if a >= 0 and b >= 0:
                        forward[i, j] += forward[a, b] * self._p[self._codes(letters, phones, i, j, shape)]
        return forward

    def best(self) -> list[list[tuple[str, tuple[str, ...]]]]:
        """The likeliest graphones of every entry that they can make up, in a fixed order."""
        aligned = []
        for letters, phones in self._groups:
            best, came_by = self._viterbi(letters, phones)
            n, m = letters.shape[1], phones.shape[1]
            for word in np.flatnonzero(best[n, m] > 0):
                i, j, path = n, m, []
                while i or j:
                    n_l, n_p = SHAPES[came_by[i, j, word]]
                    path.append(
                        (
                            "".join(self.letters[c - 1] for c in letters[word, i - n_l : i]),
                            tuple(self.phones[c - 1] for c in phones[word, j - n_p : j]),
                        )
                    )
                    i, j = i - n_l, j - n_p
                aligned.append(path[::-1])
        return aligned

    def _viterbi(self, letters: Ints, phones: Ints) -> tuple[Floats, npt.NDArray[np.int8]]:
        n, m = letters.shape[1], phones.shape[1]
        best = np.zeros((n + 1, m + 1, len(letters)))
        came_by = np.zeros(best.shape, np.int8)
        best[0, 0] = 1.0
        for i in range(1, n + 1):
            for j in range(m + 1):
                for number, shape in enumerate(SHAPES):
                    a, b = i - shape[0], j - shape[1]
                    if a < 0 or b < 0:
                        continue
                    score = best[a, b] * self._p[self._codes(letters, phones, i, j, shape)]
                    better = score > best[i, j]
                    best[i, j, better] = score[better]
                    came_by[i, j, better] = number
        return best, came_by


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """The counted n-grams of one length: keys as in NGram, uses, and the node of the n-gram less its first token."""

    keys: Ints
    uses: Ints
    counts: Ints  # what Kneser-Ney discounts: for all but the longest, the number of tokens seen before
    suffix: Ints


def count_ngrams(words: list[list[int]], size: int, order: int) -> list[_Level]:
    """The n-grams of token sequences, each from START to END, by length; `size` is the vocabulary's."""
    tokens = np.array([token for word in words for token in word])
    lengths = np.array([len(word) for word in words])
    to_end = np.concatenate([np.arange(length, 0, -1) for length in lengths])
    starts_word = to_end == np.repeat(lengths, lengths)
    node = tokens  # of the n-gram that starts at each token, -1 where its word is too short
    levels = [
        _Level(np.arange(size), np.bincount(tokens, minlength=size), np.empty(0, np.int64), np.empty(0, np.int64))
    ]
    for depth in range(1, order):
        at = np.flatnonzero(to_end > depth)
        keys, inverse, uses = np.unique(node[at] * size + tokens[at + depth], return_inverse=True, return_counts=True)
        suffix = np.empty(len(keys), np.int64)
        suffix[inverse] = node[at + 1]
        # an n-gram that opens a word has nothing before it, and counts by its uses
        opening = np.unique(node[np.flatnonzero(starts_word & (to_end > depth - 1))])
        preceded = np.bincount(suffix, minlength=len(levels[-1].keys))
        preceded[opening] = levels[-1].uses[opening]
        levels[-1] = replace(levels[-1], counts=preceded)
        levels.append(_Level(keys, uses, uses, suffix))
        node = np.full(len(tokens), -1)
        node[at] = inverse
    return levels


def smooth(levels: list[_Level]) -> NGram:
    """The interpolated Kneser-Ney probabilities of the counted n-grams."""
    size = len(levels[0].keys)
    counts = levels[0].counts.copy()
    counts[START] = 0
    p = UNIFORM / size + (1 - UNIFORM) * counts / counts.sum()
    log_p, log_backoff = [np.log(p)], []
    for above, level in itertools.pairwise(levels):
        parent = level.keys // size
        discounted = level.counts - _discounts(level.counts)[np.minimum(level.counts, 3)]
        total = np.bincount(parent, level.counts, minlength=len(above.keys))
        mass = discounted / total[parent]
        backoff = 1.0 - np.bincount(parent, mass, minlength=len(above.keys))
        p = mass + backoff[parent] * p[level.suffix]
        log_p.append(np.log(p))
        log_backoff.append(np.log(backoff))
    return NGram(
        size,
        tuple(level.keys for level in levels),
        tuple(values.astype(np.float32) for values in log_p),
        tuple(values.astype(np.float32) for values in log_backoff),
    )


def _discounts(counts: Ints) -> Floats:
    """What to take from n-grams counted 0, 1, 2, and 3 or more times (Chen and Goodman 1999, equation 26)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    return np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])


def edit_distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The least number of phones to put in, leave out or change that makes `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, phone in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (phone != other))
    return row[-1]


def measure(model: G2P, entries: dict[str, str], words: list[str]) -> Rates:
    """How often the model is wrong on `words`, against the closest of their listed pronunciations."""
    wrong = wrong_of_three = errors = phones = 0
    for word in words:
        listed = [tuple(line.split()) for line in entries[word].split("\n")]
        guesses = model.guesses(word) or ((),)
        distance, length = min((edit_distance(guesses[0], right), len(right)) for right in listed)
        wrong += distance > 0
        wrong_of_three += not set(guesses).intersection(listed)
        errors += distance
        phones += length
    return Rates(wrong / len(words), errors / phones, wrong_of_three / len(words))


def train(entries: list[Entry], order: int = ORDER) -> tuple[list[tuple[str, tuple[str, ...]]], NGram]:
    """The graphones of the entries, edges included, and their n-gram."""
    aligner = Aligner(entries)
    aligner.train(ROUNDS)
    aligned = aligner.best()
    logger.info("%d of %d pronunciations aligned", len(aligned), len(entries))
    graphones = [("", ()), ("", ()), *sorted({graphone for path in aligned for graphone in path})]
    number = {graphone: n for n, graphone in enumerate(graphones) if n not in {END, START}}
    sequences = [[START, *(number[graphone] for graphone in path), END] for path in aligned]
    return graphones, smooth(count_ngrams(sequences, len(graphones), order))


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=MODEL, show_default=True, help="the model file to write"
)
def main(output: Path) -> None:
    """Train the model and write it, with its error rates and the words held out in a .json beside it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.monotonic()
    entries = read_dictionary(dictionary_path())
    training, held_out = split(entries)
    graphones, ngram = train(training)
    save(output, graphones, ngram)
    rates = measure(G2P.load(output), entries, held_out)
    report = {
        "trained_on": len(training),
        "graphones": len(graphones),
        "ngrams": [len(keys) for keys in ngram.keys],
        "held_out_error": {name: round(rate, 4) for name, rate in asdict(rates).items()},
        "held_out": held_out,
    }
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB in {time.monotonic() - began:.0f} s")
    click.echo(
        f"on {len(held_out)} held-out words {rates.word:.1%} word and {rates.phone:.1%} phone error; "
        f"{rates.best_of_three_word:.1%} have no right one among the best three"
    )


if __name__ == "__main__":
    main()
