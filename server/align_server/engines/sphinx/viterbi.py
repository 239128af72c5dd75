"""The best path of an utterance through its graph.

Knows nodes, scores and frames, and nothing of phones' names or audio. The search is exact: it leaves no path out, and
of two that are equally good it takes the one that stays longer, then the one from the node before that comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from align_server.engines.jit import kernel
from align_server.engines.sphinx.model import STATES

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

_IMPOSSIBLE: Final = np.float32(-1e30)  # a log score that no real path comes near
_HARDLY_POSSIBLE: Final = np.float32(-1e29)


class Utterance(NamedTuple):
    """A graph with the scores of its states, in contiguous arrays.

    `rows[state, node]` is the column of `scores` that scores it; `loop` and `step` are the log scores of staying
    in a state and of coming into it: into the first from another node, into the last with leaving it again.
    The arcs into node 0 come first in `sources`, then those into node 1; `arrivals` says how many each has.
    """

    scores: Floats  # [frames, rows]
    rows: Ints  # [3, nodes]
    loop: Floats  # [3, nodes]
    step: Floats  # [3, nodes]
    sources: Ints  # [arcs]
    arrivals: Ints  # [nodes]
    starts: Ints  # nodes
    finals: Ints  # nodes


class Path(NamedTuple):
    """The nodes of the best path in turn, with the frames at which their states were entered and they were left."""

    nodes: Ints  # [spans]
    entered: Ints  # [spans, 3]
    ends: Ints  # [spans]


def best_path(u: Utterance) -> Path | None:
    """The best path; None where the utterance is too short for any. Takes 3 bytes a node and frame meanwhile."""
    spans = _search(u)
    return Path(spans[:, 0], spans[:, 1 : 1 + STATES], spans[:, -1]) if len(spans) else None


@kernel
def _search(u: Utterance) -> Ints:
    """The best path's nodes with their frames of entry and end, shape [spans, 5].

    `stayed[t, n]` has a bit for each state of n: whether the best path that is in it at frame t was there the frame
    before. `came[t, n]` is which of the arcs into n the best path takes that comes in after frame t.
    """
    frames, nodes = len(u.scores), len(u.arrivals)
    entry = np.full(nodes, _IMPOSSIBLE)
    entry[u.starts] = 0
    first, second, third = np.full(nodes, _IMPOSSIBLE), np.full(nodes, _IMPOSSIBLE), np.full(nodes, _IMPOSSIBLE)
    stayed = np.empty((frames, nodes), np.uint8)
    came = np.empty((frames, nodes), np.uint16)
    for t in range(frames):
        for n in range(nodes):
            stay, move = third[n] + u.loop[2, n], second[n] + u.step[2, n]
            bits = 4 * (stay >= move)
            third[n] = max(stay, move) + u.scores[t, u.rows[2, n]]
            stay, move = second[n] + u.loop[1, n], first[n] + u.step[1, n]
            bits += 2 * (stay >= move)
            second[n] = max(stay, move) + u.scores[t, u.rows[1, n]]
            stay, move = first[n] + u.loop[0, n], entry[n] + u.step[0, n]
            bits += stay >= move
            first[n] = max(stay, move) + u.scores[t, u.rows[0, n]]
            stayed[t, n] = bits
        arc = 0
        for n in range(nodes):
            best, way = _IMPOSSIBLE, 0
            for k in range(u.arrivals[n]):
                left = third[u.sources[arc + k]]
                if left > best:
                    best, way = left, k
            entry[n] = best
            came[t, n] = way
            arc += u.arrivals[n]
    final = u.finals[np.argmax(third[u.finals])]
    return _trace(u, stayed, came, final) if third[final] > _HARDLY_POSSIBLE else np.empty((0, 5), np.int64)


@kernel
def _trace(u: Utterance, stayed: npt.NDArray[np.uint8], came: npt.NDArray[np.uint16], node: int) -> Ints:
    """The best path that ends in `node`, as _search gives it."""
    arcs = np.cumsum(u.arrivals) - u.arrivals
    frame = len(stayed)
    spans = np.empty((frame // STATES, 5), np.int64)
    at = len(spans)
    while frame:
        at -= 1
        if at < len(spans) - 1:
            node = u.sources[arcs[node] + came[frame - 1, node]]
        spans[at, 0], spans[at, -1] = node, frame
        for state in range(STATES - 1, -1, -1):
            frame -= 1
            while stayed[frame, node] >> state & 1:
                frame -= 1
            spans[at, 1 + state] = frame
    return spans[at:]
