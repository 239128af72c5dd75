"""How much the server takes: a budget in milliseconds of audio, granted to streams as credit.

Everything that a stream was granted and that was not yet computed counts against the budget, whether it was sent or
not, so what the server holds is bounded by what it has said. A stream is granted anew when its answers have left: one
that does not read them is bounded by its own window, and costs the others nothing. Unary calls have a share that
streams cannot take, and so have demands: streams that all hold their fair window, and all need more than it for one
long segment, would otherwise wait for each other for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align_server.scheduling.work import Full

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_SHARE = 0.6  # of the budget, for the fair windows of streams
DEMAND_SHARE = 0.2  # on top, for segments longer than a fair window; the rest is for unary calls
USUAL_MS = 15_000  # the usual longest segment: what a stream needs to be of any use
IDLE_S = 5.0  # without a segment, after which what a stream has not used is lent to others
KEPT_S = 2.0  # how long the place of a refused call is kept beyond the time that it was given
KEPT_SHARE = 0.5  # of the unary share, which places kept may take from newcomers


@dataclass(eq=False)
class Grant:
    """The credit of one stream, in ms of audio since it opened.

    `notify` is called with each new total. `window_ms` says how much it can make use of: as much as its model
    computes in a while.
    """

    notify: Callable[[int], None]
    window_ms: Callable[[], int]
    granted_ms: int = 0
    received_ms: int = 0
    computed_ms: int = 0
    answered_ms: int = 0
    demand_ms: int = 0
    longest_ms: int = 0  # of the segments that came
    served: int = 0  # when it was last granted anything, as a count
    received_at: float = field(default_factory=time.monotonic)
    is_idle: bool = False

    @property
    def outstanding_ms(self) -> int:
        """Granted and not yet answered."""
        return self.granted_ms - self.answered_ms

    @property
    def unused_ms(self) -> int:
        """Granted and not yet sent."""
        return self.granted_ms - self.received_ms

    @property
    def held_ms(self) -> int:
        """Sent and not yet computed."""
        return self.received_ms - self.computed_ms

    @property
    def waits(self) -> bool:
        """Whether it said that it can do nothing until it is granted something."""
        return not self.outstanding_ms and bool(self.demand_ms)

    @property
    def counted_ms(self) -> int:
        """What it takes of the budget."""
        return self.held_ms if self.is_idle else self.granted_ms - self.computed_ms


@dataclass(slots=True)
class _Place:
    """Room that is kept for a call that was told to come back."""

    until: float
    cost_ms: int


class Admission:
    """The one account of what the server holds and has promised to take. Used from the event loop alone.

    `budget` is asked each time, since what is loaded changes what is left.
    """

    def __init__(self, budget: Callable[[], int]) -> None:
        self._budget = budget
        self._grants: dict[Grant, None] = {}
        self._hungry = False  # whether a stream has less than its window because the budget is spent
        self._places: deque[_Place] = deque()
        self._unary_ms = 0
        self._streams_ms = 0
        self._held_ms = 0
        self._idle = 0
        self._served = 0
        self._room = asyncio.Event()

    @property
    def budget_ms(self) -> int:
        """Audio that may be held and promised at once."""
        return self._budget()

    @property
    def held_ms(self) -> int:
        """Audio that the server holds: accepted and not yet computed."""
        return self._unary_ms + self._held_ms

    @property
    def unanswered_ms(self) -> int:
        """Audio that was accepted and whose answers have not left."""
        return self._unary_ms + sum(grant.received_ms - grant.answered_ms for grant in self._grants)

    @property
    def granted_ms(self) -> int:
        """Credit that is out and not used."""
        return sum(grant.unused_ms for grant in self._grants)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._grants)

    def open(self, notify: Callable[[int], None], window_ms: Callable[[], int]) -> Grant:
        """Admit a stream; its first credit comes through `notify` before this returns, if there is any."""
        grant = Grant(notify, window_ms)
        self._grants[grant] = None
        self._share()
        return grant

    def close(self, grant: Grant) -> None:
        """The stream ended: what it had out is free again."""
        del self._grants[grant]
        self._idle -= grant.is_idle
        self._held_ms -= grant.held_ms
        self._free(grant.counted_ms)

    def receive(self, grant: Grant, cost_ms: int) -> bool:
        """Book a segment that came on the stream; False where it is more than was granted."""
        if grant.unused_ms < cost_ms:
            return False
        self._wake(grant)
        is_first = grant.received_ms == 0
        grant.received_ms += cost_ms
        self._held_ms += cost_ms
        grant.demand_ms = 0
        grant.longest_ms = max(grant.longest_ms, cost_ms)
        if is_first:
            self._share()
        return True

    def computed(self, grant: Grant, cost_ms: int) -> None:
        """The audio of a segment is no longer held."""
        grant.computed_ms += cost_ms
        self._held_ms -= cost_ms
        self._free(cost_ms)

    def answer(self, grant: Grant, cost_ms: int) -> None:
        """The result of a segment has left: grant anew what it had taken."""
        grant.answered_ms += cost_ms
        if self._hungry:
            self._share()
        else:
            self._top_up(grant, *self._limits())

    def demand(self, grant: Grant, cost_ms: int) -> None:
        """The stream has a segment of that cost and too little credit for it."""
        self._wake(grant)
        grant.demand_ms = cost_ms
        self._share()

    async def room_for(self, cost_ms: int) -> None:
        """Wait until that much more may be held: what idle streams had out was lent, and they may come back at once."""
        while self.held_ms and self.held_ms + cost_ms > self.budget_ms:
            self._room.clear()
            await self._room.wait()

    def refresh(self) -> None:
        """Lend what streams without work have out. To be called about once a second."""
        before = time.monotonic() - IDLE_S
        for grant in self._grants:
            if grant.unused_ms and not grant.is_idle and not grant.held_ms and grant.received_at < before:
                self._streams_ms -= grant.unused_ms
                self._idle += 1
                grant.is_idle = True
        if self._hungry:
            self._share()

    def check_unary(self, cost_ms: int, seconds_for: Callable[[float], float], *, returning: bool = False) -> None:
        """Raise Full, with when to come back, where a unary call of that cost cannot be taken now.

        `seconds_for` says how long a cost takes to compute. A refused call has a place kept for the time that it was
        given; calls that are `returning` may take such places, and newcomers may not.
        """
        now = time.monotonic()
        while self._places and self._places[0].until < now:
            self._places.popleft()
        budget = self.budget_ms
        free = budget - self._streams_ms - self._unary_ms
        kept = sum(place.cost_ms for place in self._places)
        room = free
        if not returning:
            share = budget * (1 - WINDOW_SHARE - DEMAND_SHARE)
            room -= int(min(kept, share * KEPT_SHARE))
        if cost_ms > room:
            wait = seconds_for(cost_ms - min(free, 0) + kept)
            self._places.append(_Place(now + wait + KEPT_S, cost_ms))
            raise Full(wait, self.held_ms, budget)

    def admit_unary(self, cost_ms: int, seconds_for: Callable[[float], float], *, returning: bool = False) -> None:
        """Book a unary call. Raises Full as `check_unary` does."""
        self.check_unary(cost_ms, seconds_for, returning=returning)
        if returning and self._places:
            self._places.popleft()
        self._unary_ms += cost_ms

    async def wait_unary(self, cost_ms: int) -> None:
        """Book a piece of a long call as soon as there is room for it; `release_unary` gives it back."""
        while self._unary_ms and self.budget_ms - self._streams_ms - self._unary_ms < cost_ms:
            self._room.clear()
            await self._room.wait()
        self._unary_ms += cost_ms

    def release_unary(self, cost_ms: int) -> None:
        """A unary call was answered."""
        self._unary_ms -= cost_ms
        self._freed()

    def _wake(self, grant: Grant) -> None:
        """Count all that the stream has out again."""
        grant.received_at = time.monotonic()
        if grant.is_idle:
            grant.is_idle = False
            self._idle -= 1
            self._streams_ms += grant.unused_ms

    def _free(self, cost_ms: int) -> None:
        self._streams_ms -= cost_ms
        self._freed()

    def _freed(self) -> None:
        self._room.set()
        if self._hungry:
            self._share()

    def _limits(self) -> tuple[int, int, int]:
        """Each stream's fair window, what all windows may take, and what windows and demands may take."""
        budget = self.budget_ms
        limit = int(budget * WINDOW_SHARE)
        return limit // max(1, len(self._grants) - self._idle), limit, int(limit + budget * DEMAND_SHARE)

    def _share(self) -> None:
        """Raise grants while the budget lasts: first of streams that have least, then of those served longest ago."""
        limits = self._limits()
        self._hungry = False
        for grant in sorted(self._grants, key=lambda g: (g.outstanding_ms, g.served)):
            self._top_up(grant, *limits)
            if grant.waits and self._hungry:
                return  # what comes free is kept until it is of use to this one

    def _top_up(self, grant: Grant, fair: int, limit: int, demands: int) -> None:
        if grant.is_idle:
            return
        useful = grant.longest_ms or USUAL_MS  # less would make it ask for every segment
        window = max(min(fair, grant.window_ms()), useful) if grant.received_ms else useful
        lack = window - grant.outstanding_ms
        more = min(lack, limit - self._streams_ms)
        if grant.unused_ms + more < useful:
            more = 0  # a part of a segment is of no use, and would be missing elsewhere
        if grant.demand_ms > grant.unused_ms + more:
            lack = grant.demand_ms - grant.unused_ms
            more = lack if self._streams_ms + lack <= demands else 0
        if more < lack:
            self._hungry = True
        if more > 0:
            self._served += 1
            grant.served = self._served
            grant.granted_ms += more
            self._streams_ms += more
            grant.notify(grant.granted_ms)
