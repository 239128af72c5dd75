"""The fair queue: deficit round robin between clients, by cost.

A client with an hour queued and a client with one segment each get the same share of the audio
that is computed. Source: Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align_server.scheduling.work import Work

QUANTUM_MS = 15_000  # what one client adds to a round: one segment of the usual greatest length


class FairQueue:
    """Work of many clients, taken out in fair shares. Used from the event loop alone."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, deque[Work]] = OrderedDict()
        self._deficit: dict[str, int] = {}
        self._arrived = asyncio.Event()
        self.queued_ms = 0

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def put(self, work: Work) -> None:
        """Add work at the end of its client's lane."""
        self._lanes.setdefault(work.client, deque()).append(work)
        self._deficit.setdefault(work.client, 0)
        self.queued_ms += work.cost_ms
        self._arrived.set()

    async def take(self, max_cost_ms: int, max_items: int) -> list[Work]:
        """Wait for work and take a batch of at most that cost (or one item, if it alone costs more)."""
        while True:
            batch = self._take_now(max_cost_ms, max_items)
            if batch:
                return batch
            self._arrived.clear()
            await self._arrived.wait()

    def _take_now(self, max_cost_ms: int, max_items: int) -> list[Work]:
        batch: list[Work] = []
        cost = 0
        while self._lanes and len(batch) < max_items:
            client, lane = next(iter(self._lanes.items()))
            self._drop_unwanted(lane)
            if not lane:
                self._forget(client)
                continue
            head = lane[0]
            if batch and cost + head.cost_ms > max_cost_ms:
                break
            if self._deficit[client] < head.cost_ms:
                # Its turn is over: everybody else comes before it is served again.
                self._deficit[client] += QUANTUM_MS
                self._lanes.move_to_end(client)
                continue
            lane.popleft()
            self._deficit[client] -= head.cost_ms
            self.queued_ms -= head.cost_ms
            cost += head.cost_ms
            batch.append(head)
        return batch

    def _drop_unwanted(self, lane: deque[Work]) -> None:
        while lane and not lane[0].is_wanted:
            self.queued_ms -= lane.popleft().cost_ms

    def _forget(self, client: str) -> None:
        # An empty lane keeps no deficit: credit is not saved up while idle.
        del self._lanes[client]
        del self._deficit[client]
