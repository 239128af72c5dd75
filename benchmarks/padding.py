"""How much of what a padding model computes is padding, on the lengths of real utterances: the fair queue by itself.

Eight clients put their utterances in as they come in conversations and recordings, each within its credit, while
batches are taken, until nothing is left. No model computes: only lengths matter.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align_client.chat.document import Document
from align_client.plan import plan
from align_server.engines.engine import Segment
from align_server.scheduling.queue import FairQueue
from align_server.scheduling.work import Work
from clients import CLIENTS
from inputs import CORPORA, has_corpora, utterances
from rows import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORTEST_MS, LONGEST_MS = 300, 15_000
QUEUED_MS = 720_000  # what the credit of all streams together comes to
BATCHES_MS = (32_000, 64_000, 128_000)  # cost of a batch, at most
MOST = 0.05


@dataclass(frozen=True, slots=True)
class Batches:
    """What came of taking batches until nothing was left."""

    waste: float
    size: float

    def __str__(self) -> str:
        return f"{100 * self.waste:.1f} % in batches of {self.size:.1f} on average"


def measure(_scale: Scale) -> list[Row]:
    """Rows of the table; it is quick in any case."""
    turns, segments = _lengths()
    given = {
        "utterances": turns,
        "segments of several utterances, as align-client sends them": segments,
    }
    rows = []
    for (what, lengths), cost_ms in itertools.product(given.items(), BATCHES_MS):
        fair = asyncio.run(_fair(lengths, cost_ms))
        naive = _naive(lengths, cost_ms)
        seconds = np.array(lengths) / 1000
        about = f"{len(lengths)} {what}, {seconds.min():.1f} to {seconds.max():.1f} s, median {np.median(seconds):.1f}"
        rows.append(
            Row(
                f"padding in batches of up to {cost_ms // 1000} s ({about}): fair queue, first come first served",
                f"{fair}; {naive}",
                f"at most {100 * MOST:g} %",
                fair.waste <= MOST,
            )
        )
    return rows


def _lengths() -> tuple[list[int], list[int]]:
    """In ms and in the order of their recordings: of utterances, and of segments made of them."""
    read = [round(1000 * one.seconds) for one in utterances()]
    turns, segments = list(read), list(read)
    if has_corpora():
        for path in sorted((CORPORA / "chat" / "cabnc").rglob("*.cha")):
            said = Document.parse(path.read_bytes()).utterances
            turns += [one.span.end_ms - one.span.start_ms for one in said if one.span and one.items]
            planned = plan(said, duration_ms=None, max_segment_ms=LONGEST_MS).segments
            segments += [one.span.end_ms - one.span.start_ms for one in planned]
    return _usual(turns), _usual(segments)


def _usual(lengths: Sequence[int]) -> list[int]:
    return [length for length in lengths if SHORTEST_MS <= length <= LONGEST_MS]


async def _fair(lengths: Sequence[int], cost_ms: int) -> Batches:
    """By the server's own queue, each client with an equal part of the lengths and of the credit."""
    queue = FairQueue(pads=True)
    part = -(-len(lengths) // CLIENTS)
    waiting = [deque(lengths[start : start + part]) for start in range(0, len(lengths), part)]
    held = [0] * CLIENTS
    nothing = np.zeros(0, np.int16)
    batches = []
    while True:
        for number, left in enumerate(waiting):
            while left and held[number] + left[0] <= QUEUED_MS // CLIENTS:
                held[number] += left[0]
                queue.put(Work(Segment("", nothing, ()), str(number), left.popleft()))
        batch = queue.take(cost_ms)
        if not batch:
            break
        for work in batch:
            held[int(work.client)] -= work.cost_ms
        batches.append(batch)
    assert sum(map(len, batches)) == len(lengths)
    return _summed([[work.cost_ms for work in batch] for batch in batches])


def _naive(lengths: Sequence[int], cost_ms: int) -> Batches:
    """In the order in which eight clients in turn send them, while a batch keeps within its cost."""
    part = -(-len(lengths) // CLIENTS)
    parts = [lengths[start : start + part] for start in range(0, len(lengths), part)]
    arrived = [one for row in itertools.zip_longest(*parts) for one in row if one is not None]
    batches: list[list[int]] = [[]]
    for length in arrived:
        if batches[-1] and (len(batches[-1]) + 1) * max(*batches[-1], length) > cost_ms:
            batches.append([])
        batches[-1].append(length)
    return _summed(batches)


def _summed(batches: Sequence[Sequence[int]]) -> Batches:
    padded = sum(len(batch) * max(batch) for batch in batches)
    return Batches(1 - sum(map(sum, batches)) / padded, sum(map(len, batches)) / len(batches))
