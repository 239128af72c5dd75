"""The best path of each utterance through its graph, for a batch at once.

Knows nodes, scores and frames, and nothing of phones' names or audio. The graphs of a batch stand side by side
in one vector; a frame is a gather, additions and maxima over it, which are exact, so an utterance's path is the same
alone and in any batch. Utterances are in order of length: those that have ended drop off the end of the vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.sphinx.model import STATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

IMPOSSIBLE: Final = -1e30  # a log score that no real path comes near
_CHUNK: Final = 64  # frames whose state scores are laid out at once
_LOOK_BACK: Final = 32  # frames searched at once for where a state was entered


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A graph with the scores of its states.

    `rows[state, node]` is the row of `scores` that scores it; `loop` and `step` are the log scores of staying
    in a state and of coming into it: into the first from another node, into the last with leaving it again.
    The arcs into node 0 come first in `sources`, then those into node 1; `arrivals` says how many each has.
    """

    scores: torch.Tensor  # [rows, frames]
    rows: npt.NDArray[np.int64]  # [3, nodes]
    loop: npt.NDArray[np.float32]  # [3, nodes]
    step: npt.NDArray[np.float32]  # [3, nodes]
    sources: npt.NDArray[np.int64]  # [arcs]
    arrivals: npt.NDArray[np.int64]  # [nodes]
    starts: tuple[int, ...]
    finals: tuple[int, ...]

    @property
    def work(self) -> int:
        """Nodes times frames, which both time and memory are proportional to."""
        return len(self.arrivals) * self.frames

    @property
    def frames(self) -> int:
        """Length of the utterance."""
        return self.scores.shape[1]


@dataclass(frozen=True, slots=True)
class Span:
    """A node on the best path: the frames at which each of its states was entered, and the one at which it was left."""

    node: int
    entered: tuple[int, int, int]
    end: int


def best_paths(batch: Sequence[Utterance]) -> list[list[Span] | None]:
    """The best path of each utterance, in order; None where it is too short for any."""
    order = sorted(range(len(batch)), key=lambda i: -batch[i].frames)
    paths: list[list[Span] | None] = [None] * len(batch)
    for place, path in zip(order, _Trellis([batch[i] for i in order]).paths(), strict=True):
        paths[place] = path
    return paths


class _Trellis:
    """A batch, longest utterance first, behind one node that can never be reached.

    After the search, `left[t, n]` is the best score of leaving node n after frame t, and `stayed[t, s, n]` says
    whether the best path that is in state s of n at frame t was there the frame before.
    """

    def __init__(self, batch: Sequence[Utterance]) -> None:
        self._batch = batch
        self._device = batch[0].scores.device
        sizes = np.array([len(u.arrivals) for u in batch])
        self._first = np.concatenate([[1], 1 + np.cumsum(sizes)])
        total = int(self._first[-1])
        arrivals = np.concatenate([[0], *(u.arrivals for u in batch)])
        sources = np.concatenate([u.sources + first for u, first in zip(batch, self._first, strict=False)])
        ends = np.cumsum(arrivals)
        targets = np.repeat(np.arange(total), arrivals)
        self._before = np.zeros((int(arrivals.max()), total), np.int64)
        self._before[np.arange(len(sources)) - (ends - arrivals)[targets], targets] = sources
        begun = np.full((1, total), IMPOSSIBLE, np.float32)
        for u, first in zip(batch, self._first, strict=False):
            begun[0, first + np.array(u.starts)] = 0
        self._begun = torch.from_numpy(begun).to(self._device)
        unreachable = np.zeros((STATES, 1), np.float32)
        self._loop = torch.from_numpy(np.concatenate([unreachable, *(u.loop for u in batch)], 1)).to(self._device)
        self._step = torch.from_numpy(np.concatenate([unreachable, *(u.step for u in batch)], 1)).to(self._device)
        self._rows = [torch.from_numpy(u.rows.ravel()).to(self._device) for u in batch]
        frames = batch[0].frames
        self._left = torch.empty(frames, total, device=self._device)
        self._stayed = torch.empty(frames, STATES, total, dtype=torch.bool, device=self._device)

    def paths(self) -> Iterator[list[Span] | None]:
        """Search forward, then follow the best path of each utterance back."""
        self._search()
        left, stayed = self._left.cpu().numpy(), self._stayed.cpu().numpy()
        for first, u in zip(self._first.tolist(), self._batch, strict=False):
            yield self._trace(u, first, left, stayed)

    def _search(self) -> None:
        scores = torch.cat([self._begun, torch.full((STATES, self._begun.shape[1]), IMPOSSIBLE, device=self._device)])
        start = 0
        for running in range(len(self._batch), 0, -1):
            end = self._batch[running - 1].frames
            width = int(self._first[running])
            scores = scores[:, :width].contiguous()
            for chunk in range(start, end, _CHUNK):
                self._advance(scores, running, chunk, min(chunk + _CHUNK, end))
            start = end

    def _advance(self, scores: torch.Tensor, running: int, start: int, end: int) -> None:
        """Take `scores` from frame `start` to `end`; row 0 is that of coming into a node, the others its states'."""
        width = scores.shape[1]
        emissions = torch.empty(end - start, STATES, width, device=self._device)
        for first, u, rows in zip(self._first.tolist(), self._batch[:running], self._rows, strict=False):
            own = u.scores[:, start:end].index_select(0, rows).view(STATES, -1, end - start)
            emissions[:, :, first : first + len(u.arrivals)] = own.permute(2, 0, 1)
        emissions[:, :, 0] = 0

        change = torch.stack([self._step[:, :width], self._loop[:, :width]])
        entry, states, last = scores[0], scores[1:], scores[STATES]
        rows_twice = scores.as_strided((2, STATES, width), (width, width, 1))  # each state's row below, then its own
        reached = torch.empty_like(change)
        move, stay = reached[0], reached[1]
        sources = torch.from_numpy(np.ascontiguousarray(self._before[:, :width]).ravel()).to(self._device)
        ways = torch.empty(len(self._before), width, device=self._device)
        flat_ways = ways.view(-1)
        stayed, left = self._stayed[start:end, :, :width].unbind(0), self._left[start:end, :width].unbind(0)
        for emission, stayed_now, left_now in zip(emissions.unbind(0), stayed, left, strict=True):
            torch.add(rows_twice, change, out=reached)
            torch.ge(stay, move, out=stayed_now)
            torch.maximum(stay, move, out=states)
            states.add_(emission)
            left_now.copy_(last)
            torch.index_select(last, 0, sources, out=flat_ways)
            torch.amax(ways, 0, out=entry)

    def _trace(
        self, u: Utterance, first: int, left: npt.NDArray[np.float32], stayed: npt.NDArray[np.bool_]
    ) -> list[Span] | None:
        frame = u.frames
        finals = first + np.array(u.finals)
        node = int(finals[left[frame - 1, finals].argmax()])
        if left[frame - 1, node] < IMPOSSIBLE / 10:
            return None
        path: list[Span] = []
        while True:
            end = frame
            entered = [0, 0, 0]
            for state in reversed(range(STATES)):
                frame = entered[state] = _entered(stayed[:, state, node], frame)
            path.append(Span(node - first, (entered[0], entered[1], entered[2]), end))
            if frame == 0:
                return path[::-1]
            ways = self._before[:, node]
            node = int(ways[left[frame - 1, ways].argmax()])


def _entered(stayed: npt.NDArray[np.bool_], end: int) -> int:
    """The last frame before `end` that did not stay."""
    while True:
        start = max(0, end - _LOOK_BACK)
        back = stayed[start:end][::-1]
        first = int(back.argmin())
        if not back[first]:
            return end - 1 - first
        end = start
