"""Where in a long recording each utterance of a transcript is said: a search that goes along with the audio.

Knows symbols, frames and how well they fit; knows no audio, no model and no message. The transcript is one chain of
symbols. Between utterances, before the first and after the last, anything may be said; one may be left out. At every
frame only what is within BEAM of the best is kept, so memory and time grow with the length of the recording and not
with its product with that of the transcript. It is token passing: S. Young, N. Russell, J. Thornton, Token passing: a
simple conceptual model for connected speech recognition systems, Cambridge 1989.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from align_server.engines.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from align_server.engines.engine import Scanning

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int32]
    Flags = npt.NDArray[np.bool_]

BEAM: Final = 400.0  # of log score: 15 s of audio that fits nothing
STAY: Final = 0.15  # that another frame of a symbol costs: else its neighbours' sounds are cheap to stretch it over
PAUSE: Final = 0.1  # that a frame of silence within an utterance costs: else words stray into pauses around it
SKIP: Final = 10.0  # that leaving out an utterance costs...
SKIP_SYMBOL: Final = 0.5  # ... and each of its symbols
RECORDS: Final = 1 << 12  # utterances ended by some path, to begin with
_NEVER: Final = np.float32(-1e30)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an utterance is said, in ms, and by how much a frame of it fits better than any unknown sound would."""

    start_ms: int
    end_ms: int
    score: float


class _Nodes(NamedTuple):
    """The chain. A gap has the symbol -1, and stands before every utterance and after the last."""

    symbol: Ints
    optional: Flags  # silence after a word
    first: Flags  # of an utterance
    last: Flags  # silence after an utterance's last word
    utterance: Ints
    next_gap: Ints  # of a gap: the one after the utterance that follows, -1 for the last


class _Paths(NamedTuple):
    """The best path into each node: its score, where its utterance began and ended, and what it went through before."""

    score: Floats
    begin: Ints  # frame
    began: Floats  # the score there
    end: Ints  # frame; in the silence after a word
    ended: Floats
    record: Ints  # the last utterance that it ended, -1 for none


class _Position(NamedTuple):
    """How far a search is: the first and last active node, the records written, the next frame."""

    low: int
    high: int
    recorded: int
    frame: int


class _Records(NamedTuple):
    """Utterances that paths ended: which, from which frame to which, its score, and the record before."""

    utterance: Ints
    begin: Ints
    end: Ints
    score: Floats
    before: Ints


class Search:
    """Finds utterances, each a list of words in symbols, in evidence that is fed front to back.

    Evidence is as `Scanning` has it. Of the utterances those without symbols are never found. Not safe to use from
    several threads at once; `feed` leaves the GIL to others.
    """

    def __init__(self, utterances: Sequence[Sequence[tuple[int, ...]]], scanning: Scanning) -> None:
        self._count = len(utterances)
        self._scanning = scanning
        self._nodes = _chain(utterances, scanning.silence)
        size = len(self._nodes.symbol)
        self._paths = _Paths(
            np.full(size, _NEVER),
            np.zeros(size, np.int32),
            np.zeros(size, np.float32),
            np.zeros(size, np.int32),
            np.zeros(size, np.float32),
            np.full(size, -1, np.int32),
        )
        self._paths.score[0] = 0.0
        self._records = _records(RECORDS)
        self._recorded = 0
        self._frames = 0
        self._active = (0, 0)

    def feed(self, evidence: Floats) -> None:
        """The next frames: shape [frames, symbols]."""
        fits = np.ascontiguousarray(evidence[:, :-1] - evidence[:, -1:], np.float32)  # better than unknown sound
        silence = self._scanning.silence
        silent = np.ascontiguousarray(fits[:, silence]) if self._scanning.gives_way else np.full(len(fits), _NEVER)
        while len(fits):
            at = _Position(*self._active, self._recorded, self._frames)
            at = _advance(fits, silent, self._nodes, self._paths, self._records, at)
            self._active, self._recorded = (at.low, at.high), at.recorded
            done, self._frames = at.frame - self._frames, at.frame
            fits, silent = fits[done:], silent[done:]
            if len(fits):
                more = _records(len(self._records.utterance))
                pairs = zip(self._records, more, strict=True)
                self._records = _Records(*(np.concatenate([old, new]) for old, new in pairs))

    def finish(self) -> list[Place | None]:
        """Where each utterance is, in their order; None for those that are left out."""
        places: list[Place | None] = [None] * self._count
        record, cut = self._last()
        if cut is not None:
            places[cut[0]] = self._place(*cut[1:])
        while record >= 0:
            r = self._records
            places[r.utterance[record]] = self._place(r.begin[record], r.end[record], float(r.score[record]))
            record = int(r.before[record])
        return places

    def _last(self) -> tuple[int, tuple[int, int, int, float] | None]:
        """The record that the best whole path ends with, and the utterance that is not over when the recording is."""
        nodes, paths = self._nodes, self._paths
        last = len(nodes.symbol) - 1
        best = max(range(max(0, last - 2), last + 1), key=lambda node: paths.score[node])
        if paths.score[best] <= _NEVER / 10:  # the beam has lost the end
            best = int(np.argmax(paths.score))
        if nodes.symbol[best] < 0:
            return int(paths.record[best]), None
        begin = int(paths.begin[best])
        end, score = self._frames, float(paths.score[best])
        if nodes.optional[best]:
            end, score = int(paths.end[best]), float(paths.ended[best])
        fit = (score - float(paths.began[best])) / max(1, end - begin)
        return int(paths.record[best]), (int(nodes.utterance[best]), begin, end, fit)

    def _place(self, begin: int, end: int, score: float) -> Place:
        frame = self._scanning.frame_ms
        return Place(int(begin * frame), int(end * frame), score)


def _records(size: int) -> _Records:
    return _Records(
        np.zeros(size, np.int32),
        np.zeros(size, np.int32),
        np.zeros(size, np.int32),
        np.zeros(size, np.float32),
        np.full(size, -1, np.int32),
    )


def _chain(utterances: Sequence[Sequence[tuple[int, ...]]], silence: int) -> _Nodes:
    symbol: list[int] = []
    optional: list[bool] = []
    first: list[bool] = []
    utterance: list[int] = []
    gaps: list[int] = []

    def add(what: int, owner: int, *, may_lack: bool = False, begins: bool = False) -> None:
        symbol.append(what)
        optional.append(may_lack)
        first.append(begins)
        utterance.append(owner)

    for number, words in enumerate(utterances):
        said = [word for word in words if word]
        if not said:
            continue
        gaps.append(len(symbol))
        add(-1, number)
        begins = True
        for word in said:
            for one in word:
                add(one, number, begins=begins)
                begins = False
            add(silence, number, may_lack=True)
    gaps.append(len(symbol))
    add(-1, len(utterances))
    last = np.zeros(len(symbol), np.bool_)
    next_gap = np.full(len(symbol), -1, np.int32)
    for gap, following in itertools.pairwise(gaps):
        next_gap[gap] = following
        last[following - 1] = True
    return _Nodes(
        np.array(symbol, np.int32),
        np.array(optional, np.bool_),
        np.array(first, np.bool_),
        last,
        np.array(utterance, np.int32),
        next_gap,
    )


@kernel
def _advance(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  one loop over frames, in a language without objects
    fits: Floats, silent: Floats, nodes: _Nodes, paths: _Paths, records: _Records, at: _Position
) -> _Position:
    """Go on by these frames, or by fewer where the records are full.

    `fits` has each symbol's score less that of unknown sound, shape [frames, symbols]; `silent` that of the silence
    that a symbol may give way to, shape [frames]. Nodes are visited from the end of the chain, so that what a node
    takes from those before it is of the frame before.
    """
    score, begin, began, end, ended, record = paths
    low, high, recorded, begun = at
    size = len(nodes.symbol)
    for t in range(len(fits)):
        frame = begun + t
        top = min(size - 1, high + 2)
        if recorded + (top - low + 1) > len(records.utterance):
            return _Position(low, high, recorded, frame)
        best = _NEVER
        for node in range(top, low - 1, -1):
            symbol = nodes.symbol[node]
            stayed = score[node]
            value = stayed
            if symbol >= 0 and not nodes.optional[node] and silent[t] <= _NEVER / 10:  # a token of CTC is short
                value -= np.float32(STAY)
            source = node
            if node - 1 >= low and score[node - 1] > value:
                value, source = score[node - 1], node - 1
            if node - 2 >= low and nodes.optional[node - 1] and score[node - 2] > value:
                value, source = score[node - 2], node - 2
            if value <= _NEVER / 10:
                score[node] = _NEVER
                continue
            if symbol < 0:
                if source != node:
                    over, fit = frame, value
                    if nodes.optional[source]:
                        over, fit = end[source], ended[source]
                    records.utterance[recorded] = nodes.utterance[source]
                    records.begin[recorded] = begin[source]
                    records.end[recorded] = over
                    records.score[recorded] = (fit - began[source]) / max(1, over - begin[source])
                    records.before[recorded] = record[source]
                    record[node] = recorded
                    recorded += 1
            else:
                if source != node:
                    record[node] = record[source]
                    if nodes.first[node]:
                        begin[node] = frame
                        began[node] = value
                    else:
                        begin[node], began[node] = begin[source], began[source]
                    if nodes.optional[node]:
                        end[node], ended[node] = frame, value
                fit = fits[t, symbol]
                if source == node and not nodes.optional[node]:
                    fit = max(fit, silent[t] - np.float32(PAUSE))
                if nodes.optional[node] and not nodes.last[node]:
                    fit -= np.float32(PAUSE)
                value += fit
            score[node] = value
            best = max(best, value)
        threshold = best - np.float32(BEAM)
        node = low
        while node <= top:
            following = nodes.next_gap[node]
            if following >= 0 and score[node] >= threshold:
                value = score[node] - np.float32(SKIP) - np.float32(SKIP_SYMBOL) * (following - node)
                if value >= threshold and (following > top or value > score[following]):
                    for other in range(top + 1, following):
                        score[other] = _NEVER
                    top = max(top, following)
                    score[following], record[following] = value, record[node]
            node += 1
        while low < top and score[low] < threshold:
            score[low] = _NEVER
            low += 1
        high = top
        while high > low and score[high] < threshold:
            score[high] = _NEVER
            high -= 1
        for node in range(low, high):
            if score[node] < threshold:
                score[node] = _NEVER
        for node in range(high + 1, min(size, high + 3)):
            score[node] = _NEVER
    return _Position(low, high, recorded, begun + len(fits))
