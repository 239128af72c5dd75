"""From a path through phones to the times and scores of words.

Knows frames, spans and scores, and nothing of how the path was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.engine import SAMPLE_RATE, Phone
from align_server.engines.jit import kernel
from align_server.engines.sphinx.features import BOUNDARY_MS, HOP
from align_server.engines.sphinx.graph import SILENCE, UNKNOWN_SOUND
from align_server.engines.sphinx.model import STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from align_server.engines.sphinx.graph import Graph
    from align_server.engines.sphinx.viterbi import Path

FRAME_MS: Final = 1000 * HOP / SAMPLE_RATE
REACH: Final = 8  # frames


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Log scores without context [rows, frames] that place boundaries and judge words.

    The first rows are those of `senones`, [senones], ascending; `rows` has the row of each state, [nodes, 3].
    """

    scores: npt.NDArray[np.float32]
    senones: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def edges(path: Path, evidence: Evidence, duration_ms: int) -> npt.NDArray[np.int64]:
    """Where the spans of a path begin, and where the last ends, in ms within the audio: shape [spans + 1]."""
    frames = evidence.scores.shape[1]
    edge = np.concatenate([[0.0], boundaries(path, evidence), [float(frames)]])
    ms: npt.NDArray[np.int64] = np.minimum(np.rint(FRAME_MS * edge + BOUNDARY_MS).astype(int), duration_ms)
    ms[0], ms[-1] = 0, duration_ms
    return ms


def item_times(path: Path, graph: Graph, ms: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and end of every item of the graph in order, by the path's `edges`."""
    owner = graph.owners[path.nodes]
    change = np.flatnonzero(np.diff(owner, prepend=SILENCE - 1, append=SILENCE - 1))  # where another item begins
    heard = owner[change[:-1]] != SILENCE
    return list(zip(ms[change[:-1][heard]].tolist(), ms[change[1:][heard]].tolist(), strict=True))


def item_phones(
    path: Path, graph: Graph, ms: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[int, tuple[Phone, ...]]:
    """The phones of every word, by item, in the pronunciation that was heard; `names` are those of the phone set."""
    found: dict[int, tuple[Phone, ...]] = {}
    for span in np.flatnonzero(_is_word(path, graph)).tolist():
        node = path.nodes[span]
        item = int(graph.owners[node])
        phone = Phone(names[graph.phones[node]], int(ms[span]), int(ms[span + 1]))
        found[item] = (*found.get(item, ()), phone)
    return found


def _is_word(path: Path, graph: Graph) -> npt.NDArray[np.bool_]:
    """Which spans of a path are phones of words: neither silence nor unknown sound."""
    said: npt.NDArray[np.bool_] = graph.senones[path.nodes, 0] != UNKNOWN_SOUND
    said &= graph.owners[path.nodes] != SILENCE
    return said


def boundaries(path: Path, evidence: Evidence) -> npt.NDArray[np.float64]:
    """Where each span of a path ends and the next begins, in frames and fractions.

    The search puts a boundary on a frame. Here it is the mean of where it may lie while the states to its two
    sides stay where they are, weighted by likelihood, at most REACH frames from where the search put it.
    """
    scores, rows, nodes = evidence.scores, evidence.rows, path.nodes
    if len(nodes) == 1:
        return np.empty(0)
    found = path.ends[:-1]
    first = np.maximum(found - REACH, path.entered[:-1, STATES - 1] + 1)
    last = np.minimum(found + REACH, path.entered[1:, 1] - 1)
    places = first[:, None] + np.arange(2 * REACH + 1)
    frames = np.minimum(places, scores.shape[1] - 1)
    before, after = rows[nodes[:-1], STATES - 1, None], rows[nodes[1:], 0, None]
    change = (scores[before, frames] - scores[after, frames]).astype(np.float64)
    gain = np.cumsum(change, axis=1) - change  # of the frames from the first place on that the left state takes
    gain[places > last[:, None]] = -np.inf
    weight = np.exp(gain - gain.max(1, keepdims=True))
    mean: npt.NDArray[np.float64] = (weight * places).sum(1) / weight.sum(1)
    return mean


def word_scores(
    path: Path,
    graph: Graph,
    evidence: Evidence,
    filler: npt.NDArray[np.bool_],
    score: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float32]],
) -> dict[int, float]:
    """How well each word fits, by item: 1 where no phone fits the middle frame of any of its phones better.

    It is the geometric mean, over the phones, of each one's scaled likelihood as a share of the best phone's,
    all without context and in the state that fits best.
    `score(frames, senones)` scores what the evidence lacks, scaled as it is, shape [senones, frames].
    """
    heard = _is_word(path, graph)
    nodes = path.nodes[heard]
    middles = (path.entered[heard, 0] + path.ends[heard]) // 2
    missing = ~np.repeat(filler, STATES)
    known = evidence.senones[: np.searchsorted(evidence.senones, len(missing))]
    missing[known] = False
    others = np.flatnonzero(missing)
    best = np.full((len(filler), len(middles)), -np.inf, np.float32)
    _raise_to(best, known, evidence.scores, middles)
    if len(others):
        _raise_to(best, others, score(middles, others), np.arange(len(middles)))
    shortfall = best[graph.phones[nodes], range(len(nodes))] - best[~filler].max(0)
    owners = graph.owners[nodes]
    total, count = np.bincount(owners, shortfall), np.bincount(owners)
    return {int(owner): float(np.exp(total[owner] / count[owner])) for owner in np.flatnonzero(count)}


@kernel
def _raise_to(
    best: npt.NDArray[np.float32],
    senones: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    frames: npt.NDArray[np.int64],
) -> None:
    """Raise `best`, shape [phones, places], to what any state of a phone has in the frames of these places.

    `scores`, shape [senones, frames], are those of context-free senones first.
    """
    for i, senone in enumerate(senones):
        for place, frame in enumerate(frames):
            best[senone // STATES, place] = max(best[senone // STATES, place], scores[i, frame])
