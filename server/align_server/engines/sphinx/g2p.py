"""Guesses how an unlisted word is said: a joint n-gram over graphones, decoded with a beam.

A graphone is one or two letters with the phones they stand for (Bisani and Ney 2008). Knows only
the model file that train_g2p.py writes; which words need a guess is for the lexicon to say.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from align_server.engines.engine import EngineLoadError

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float32]
    Ints: TypeAlias = npt.NDArray[np.int64]

MODEL = Path(__file__).with_name("g2p.npz")
END, START = 0, 1  # graphone ids of the word's edges
NATS_PER_STEP = 1 / 16  # log probabilities are stored as that many steps below zero, in a byte
BEAM = 20
MAX_LETTERS = 40
CACHED_WORDS = 8192
GRAPHONE_LETTERS = 2  # at most


@dataclass(frozen=True, slots=True, eq=False)
class NGram:
    """A back-off n-gram as a trie: the node at depth d is a d-gram, and the history of its children at d + 1.

    Element d - 1 of each tuple is for depth d. `keys` is sorted: parent node times vocabulary size plus graphone,
    shape [nodes]. `log_p` and `log_backoff` are natural logarithms, shape [nodes]; `log_backoff` has no element for
    the deepest nodes, which are nobody's history.
    """

    size: int
    keys: tuple[Ints, ...]
    log_p: tuple[Floats, ...]
    log_backoff: tuple[Floats, ...]

    @property
    def order(self) -> int:
        """The longest n-gram's length."""
        return len(self.keys)

    def start(self) -> Ints:
        """The state before a word's first graphone. A state is the node of each suffix of the history, shape [order].

        Element d is the node of the last d graphones, -1 where there is none; element 0 is the empty history.
        """
        state = np.full(self.order, -1, np.int64)
        state[0] = 0
        state[1] = START
        return state

    def score(self, states: Ints, graphones: Ints) -> tuple[Floats, Ints]:
        """Log probability of each graphone after each state, and the states then reached.

        `states` has shape [s, order] and `graphones` [g]; the results have shapes [s, g] and [s, g, order].
        """
        shape = (len(states), len(graphones))
        reached = np.full((*shape, self.order), -1, np.int64)
        reached[..., 0] = 0
        log_p = np.broadcast_to(self.log_p[0][graphones], shape)
        reached[..., 1] = graphones
        for depth in range(1, self.order):
            history = states[:, depth, None]
            keys = np.where(history >= 0, history * self.size + graphones, -1)
            at = np.minimum(np.searchsorted(self.keys[depth], keys), len(self.keys[depth]) - 1)
            found = self.keys[depth][at] == keys
            backed_off = log_p + np.where(history >= 0, self.log_backoff[depth - 1][history], 0.0)
            log_p = np.where(found, self.log_p[depth][at], backed_off)
            if depth + 1 < self.order:
                reached[..., depth + 1] = np.where(found, at, -1)
        return log_p.astype(np.float32, copy=False), reached


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    log_p: float
    phones: tuple[str, ...]
    state: Ints


class G2P:
    """The model of `graphones` (letters and phones of each, edges included) and their n-gram.

    Safe to use from several threads; what was asked once is remembered.
    """

    def __init__(self, graphones: list[tuple[str, tuple[str, ...]]], ngram: NGram) -> None:
        self._phones = [phones for _, phones in graphones]
        self._ngram = ngram
        by_letters: dict[str, list[int]] = {}
        for number, (letters, _) in enumerate(graphones):
            by_letters.setdefault(letters, []).append(number)
        self._by_letters = {letters: np.array(ids, np.int64) for letters, ids in by_letters.items() if letters}
        self._remembered = lru_cache(maxsize=CACHED_WORDS)(self._decode)

    @classmethod
    def load(cls, path: Path = MODEL) -> G2P:
        """The model in a file of `save`. Raises EngineLoadError where it is missing or is not one."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(*_unpack(dict(arrays)))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise EngineLoadError(
                f"{path} is not a grapheme-to-phoneme model ({error}): reinstall chatalign[server], "
                "or make it anew with python -m align_server.engines.sphinx.train_g2p"
            ) from error

    def guesses(self, word: str, count: int = 3) -> tuple[tuple[str, ...], ...]:
        """The `count` likeliest pronunciations of a word of small letters, best first.

        Empty if the word is empty, has other characters or is longer than MAX_LETTERS.
        """
        return self._remembered(word)[:count]

    def _decode(self, word: str) -> tuple[tuple[str, ...], ...]:
        if not 0 < len(word) <= MAX_LETTERS:
            return ()
        reached: list[list[_Hypothesis]] = [[] for _ in range(len(word) + 1)]
        reached[0].append(_Hypothesis(0.0, (), self._ngram.start()))
        for position in range(len(word)):
            beam = sorted(reached[position], key=lambda h: -h.log_p)[:BEAM]
            if not beam:
                continue
            for length in range(1, GRAPHONE_LETTERS + 1):
                graphones = self._by_letters.get(word[position : position + length])
                if graphones is not None and position + length <= len(word):
                    reached[position + length] += self._extended(beam, graphones)
        return self._finished(sorted(reached[-1], key=lambda h: -h.log_p)[:BEAM])

    def _extended(self, beam: list[_Hypothesis], graphones: Ints) -> list[_Hypothesis]:
        """The best extensions of the beam by one graphone each."""
        log_p, states = self._ngram.score(np.stack([h.state for h in beam]), graphones)
        total = log_p + np.array([h.log_p for h in beam], np.float32)[:, None]
        best = np.argsort(-total, axis=None, kind="stable")[:BEAM]
        return [
            _Hypothesis(float(total[h, g]), beam[h].phones + self._phones[graphones[g]], states[h, g])
            for h, g in zip(*np.unravel_index(best, total.shape), strict=True)
        ]

    def _finished(self, beam: list[_Hypothesis]) -> tuple[tuple[str, ...], ...]:
        """The pronunciations of whole words, best first; the ways to spell the same one add up."""
        if not beam:
            return ()
        log_p, _ = self._ngram.score(np.stack([h.state for h in beam]), np.array([END]))
        chances: dict[tuple[str, ...], float] = {}
        for hypothesis, ending in zip(beam, log_p[:, 0].tolist(), strict=True):
            if hypothesis.phones:
                chance = float(np.exp(hypothesis.log_p + ending))
                chances[hypothesis.phones] = chances.get(hypothesis.phones, 0.0) + chance
        return tuple(sorted(chances, key=lambda phones: -chances[phones]))


def save(path: Path, graphones: list[tuple[str, tuple[str, ...]]], ngram: NGram) -> None:
    """Write a model: per depth the graphone of each node and how many children each parent has, and bytes for log p."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "graphones": np.array([f"{letters}|{' '.join(phones)}" for letters, phones in graphones])
    }
    parents = 1
    for depth, (keys, log_p) in enumerate(zip(ngram.keys, ngram.log_p, strict=True), start=1):
        arrays[f"graphone{depth}"] = (keys % ngram.size).astype(np.uint16)
        arrays[f"children{depth}"] = np.bincount(keys // ngram.size, minlength=parents).astype(np.uint16)
        arrays[f"log_p{depth}"] = _steps(log_p)
        if depth < ngram.order:
            arrays[f"log_backoff{depth}"] = _steps(ngram.log_backoff[depth - 1])
        parents = len(keys)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _unpack(arrays: dict[str, npt.NDArray[np.generic]]) -> tuple[list[tuple[str, tuple[str, ...]]], NGram]:
    graphones = []
    for entry in arrays["graphones"].tolist():
        letters, _, phones = entry.partition("|")
        graphones.append((letters, tuple(phones.split())))
    order = sum(name.startswith("graphone") for name in arrays) - 1
    keys = []
    for depth in range(1, order + 1):
        children = arrays[f"children{depth}"]
        parent = np.repeat(np.arange(len(children)), children.astype(np.int64))
        keys.append(parent * len(graphones) + arrays[f"graphone{depth}"].astype(np.int64))
    log_p = tuple(_nats(arrays[f"log_p{depth}"]) for depth in range(1, order + 1))
    log_backoff = tuple(_nats(arrays[f"log_backoff{depth}"]) for depth in range(1, order))
    return graphones, NGram(len(graphones), tuple(keys), log_p, log_backoff)


def _steps(log_p: Floats) -> npt.NDArray[np.uint8]:
    steps: npt.NDArray[np.uint8] = np.clip(np.rint(-log_p / NATS_PER_STEP), 0, 255).astype(np.uint8)
    return steps


def _nats(steps: npt.NDArray[np.generic]) -> Floats:
    return steps.astype(np.float32) * np.float32(-NATS_PER_STEP)
