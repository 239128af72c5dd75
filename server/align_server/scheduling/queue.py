"""The fair queue: deficit round robin between clients, by cost, and batches of like lengths.

A client with an hour queued and a client with one segment each get the same share of what is computed.
Source: Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995. Here a deficit may fall
below zero: what a client was given out of turn, to fill a batch, it waits for later.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from align_server.scheduling.work import Work

QUANTUM_MS = 15_000  # what one client adds to a round: one segment of the usual greatest length
MAX_WASTE = 0.05  # of a padded batch that may be padding
MAX_ITEMS = 64  # in one batch
MAX_DEBTORS = 1000  # clients without work whose debts are remembered
BULK_SHARE = 0.25  # of what is computed that bulk work keeps, however much interactive work there is


class FairQueue:
    """Work of many clients, taken out in fair shares. Used from the event loop alone.

    `pads` says that a batch costs as much as its longest item times its items. `unwanted` is called with each
    item that was dropped because nobody waits for it or its deadline has passed.
    """

    def __init__(self, *, pads: bool = False, unwanted: Callable[[Work], object] = lambda _: None) -> None:
        self._pads = pads
        self._unwanted = unwanted
        self._lanes: OrderedDict[str, deque[Work]] = OrderedDict()
        self._deficit: dict[str, int] = {}
        self._items = 0
        self.queued_ms = 0

    def __len__(self) -> int:
        return self._items

    def put(self, work: Work) -> None:
        """Add work at the end of its client's lane."""
        self._lanes.setdefault(work.client, deque()).append(work)
        self._deficit.setdefault(work.client, 0)
        self.queued_ms += work.cost_ms
        self._items += 1

    def take(self, max_cost_ms: int, *, longest_ms: int | None = None, room_ms: int | None = None) -> list[Work]:
        """A batch of at most that cost, or of one item that alone costs more, but never more than `room_ms`.

        Items above `longest_ms` stay where they are. Empty where nothing can be taken: where the one whose turn it is
        finds no room, those behind it wait too.
        """
        first = self._next(longest_ms)
        if first is None or (room_ms is not None and first.cost_ms > room_ms):
            return []
        self._remove(first)
        batch = [first]
        if self._pads:
            for work in self._like(first, max_cost_ms):
                self._remove(work)
                batch.append(work)
            return batch
        cost = first.cost_ms
        while len(batch) < MAX_ITEMS and (other := self._next(longest_ms)) and cost + other.cost_ms <= max_cost_ms:
            self._remove(other)
            batch.append(other)
            cost += other.cost_ms
        return batch

    def remove_all(self) -> list[Work]:
        """Everything that waits, in no order."""
        left = [work for lane in self._lanes.values() for work in lane]
        self._lanes.clear()
        self._deficit.clear()
        self._items = self.queued_ms = 0
        return left

    def by_client(self) -> Iterator[tuple[str, int, int]]:
        """Each client that waits, with its items and their cost."""
        for client, lane in self._lanes.items():
            yield client, len(lane), sum(work.cost_ms for work in lane)

    def _next(self, longest_ms: int | None) -> Work | None:
        """Whose turn it is."""
        passed: set[str] = set()
        while self._lanes:
            client, lane = next(iter(self._lanes.items()))
            self._drop_unwanted(lane)
            if not lane:
                self._forget(client)
                continue
            work = lane[0] if longest_ms is None else _first_within(lane, longest_ms)
            if work is not None and self._deficit[client] >= work.cost_ms:
                return work
            # Its turn is over: everybody else comes before it is served again.
            self._lanes.move_to_end(client)
            if work is not None:
                self._deficit[client] += QUANTUM_MS
            else:
                passed.add(client)
                if len(passed) == len(self._lanes):
                    return None
        self._deficit.clear()  # nobody waits: what was given out of turn cost nobody anything
        return None

    def _like(self, first: Work, max_cost_ms: int) -> Iterator[Work]:
        """What may join `first` in a padded batch: the nearest lengths of all clients, while little is wasted."""
        waiting = [work for lane in self._lanes.values() for work in lane if work.can_be_done_in(0)]
        waiting.sort(key=lambda work: abs(work.cost_ms - first.cost_ms))
        count, longest, total = 1, first.cost_ms, first.cost_ms
        for work in waiting:
            longest_then = max(longest, work.cost_ms)
            padded, full = (count + 1) * longest_then, total + work.cost_ms
            if count >= MAX_ITEMS or padded > max_cost_ms or full < (1 - MAX_WASTE) * padded:
                return
            count, longest, total = count + 1, longest_then, full
            yield work

    def _remove(self, work: Work) -> None:
        lane = self._lanes[work.client]
        lane.remove(work)
        self._deficit[work.client] -= work.cost_ms
        self.queued_ms -= work.cost_ms
        self._items -= 1
        if not lane:
            self._forget(work.client)

    def _drop_unwanted(self, lane: deque[Work]) -> None:
        while lane and not lane[0].can_be_done_in(0):
            work = lane.popleft()
            self.queued_ms -= work.cost_ms
            self._items -= 1
            self._unwanted(work)

    def _forget(self, client: str) -> None:
        # Credit is not saved up while idle, but a debt is not forgiven by a moment without work.
        del self._lanes[client]
        if self._deficit[client] >= 0:
            del self._deficit[client]
        elif len(self._deficit) > len(self._lanes) + MAX_DEBTORS:
            self._deficit = {name: deficit for name, deficit in self._deficit.items() if name in self._lanes}


def _first_within(lane: deque[Work], longest_ms: int) -> Work | None:
    return next((work for work in lane if work.cost_ms <= longest_ms and work.can_be_done_in(0)), None)


class Turns:
    """Whose turn it is between interactive and bulk work: interactive first, but bulk keeps its share."""

    def __init__(self) -> None:
        self._owed_ms = 0.0

    def interactive_next(self, batch_ms: int) -> bool:
        """Whether interactive work goes first, where both wait and a bulk batch costs that much."""
        return self._owed_ms < batch_ms

    def took(self, cost_ms: int, *, interactive: bool, bulk_waits: bool) -> None:
        """Book a batch that was taken."""
        if interactive and bulk_waits:
            self._owed_ms += cost_ms * BULK_SHARE / (1 - BULK_SHARE)
        elif not interactive:
            self._owed_ms = max(0.0, self._owed_ms - cost_ms)
        if not bulk_waits:
            self._owed_ms = 0.0


def padded_ms(batch: list[Work], *, pads: bool) -> int:
    """What a batch costs to compute."""
    return len(batch) * max(work.cost_ms for work in batch) if pads else sum(work.cost_ms for work in batch)
