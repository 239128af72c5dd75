"""How much the server takes: a budget in milliseconds of audio, granted to streams as credit.

Everything that a stream was granted and that was not yet answered counts against the budget, whether it
was sent or not, so what the server holds is bounded by what it has said. Unary calls have a share that
streams cannot take, and so have demands: streams that all hold their fair window, and all need more than
it for one long segment, would otherwise wait for each other for ever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align_server.scheduling.work import DeadlineTooSoon, Full

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_SHARE = 0.6  # of the budget, for the fair windows of streams
DEMAND_SHARE = 0.2  # on top, for segments longer than a fair window; the rest is for unary calls
WINDOW_MS = 180_000  # the most that one stream has out: enough to keep every lane busy alone
RATE_SMOOTHING = 0.2  # weight of the newest batch in the measured rate
UNMEASURED_RATE = 10.0  # audio seconds per second assumed before the first batch


class Throughput:
    """Audio per second of computing, lately, over all lanes."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.segments_done = 0
        self.audio_done_ms = 0

    def record(self, cost_ms: int, seconds: float, segments: int, lanes: int) -> None:
        """Take one finished batch into account; `lanes` batches were computed at the same time."""
        self.segments_done += segments
        self.audio_done_ms += cost_ms
        rate = lanes * cost_ms / 1000 / max(seconds, 1e-6)
        self.rate = rate if self.rate == 0 else (1 - RATE_SMOOTHING) * self.rate + RATE_SMOOTHING * rate

    def seconds_for(self, cost_ms: int) -> float:
        """How long that much audio will take."""
        return cost_ms / 1000 / (self.rate or UNMEASURED_RATE)


@dataclass(eq=False)
class Grant:
    """The credit of one stream, in ms of audio since it opened. `notify` is called with each new total."""

    notify: Callable[[int], None]
    granted_ms: int = 0
    received_ms: int = 0
    answered_ms: int = 0
    demand_ms: int = 0

    @property
    def outstanding_ms(self) -> int:
        """Granted and not yet answered."""
        return self.granted_ms - self.answered_ms

    @property
    def unused_ms(self) -> int:
        """Granted and not yet sent."""
        return self.granted_ms - self.received_ms


class Admission:
    """The one account of what the server holds and has promised to take. Used from the event loop alone."""

    def __init__(self, budget_ms: int, throughput: Throughput) -> None:
        self.budget_ms = budget_ms
        self._throughput = throughput
        self._grants: list[Grant] = []
        self._unary_ms = 0
        self._streams_ms = 0

    @property
    def held_ms(self) -> int:
        """Audio that the server holds: accepted and not yet answered."""
        return self._unary_ms + sum(grant.received_ms - grant.answered_ms for grant in self._grants)

    @property
    def granted_ms(self) -> int:
        """Credit that is out and not used."""
        return sum(grant.unused_ms for grant in self._grants)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._grants)

    def open(self, notify: Callable[[int], None]) -> Grant:
        """Admit a stream; its first credit comes through `notify` before this returns."""
        grant = Grant(notify)
        self._grants.append(grant)
        self._share()
        return grant

    def close(self, grant: Grant) -> None:
        """The stream ended: what it had out is free again."""
        self._grants.remove(grant)
        self._streams_ms -= grant.outstanding_ms
        self._share()

    def receive(self, grant: Grant, cost_ms: int) -> bool:
        """Book a segment that came on the stream; False where it is more than was granted."""
        if grant.unused_ms < cost_ms:
            return False
        grant.received_ms += cost_ms
        grant.demand_ms = 0
        return True

    def answer(self, grant: Grant, cost_ms: int) -> None:
        """The result of a segment has left: grant anew what it had taken."""
        grant.answered_ms += cost_ms
        self._streams_ms -= cost_ms
        self._share()

    def demand(self, grant: Grant, cost_ms: int) -> None:
        """The stream has a segment of that cost and too little credit for it."""
        grant.demand_ms = cost_ms
        self._share()

    def admit_unary(self, cost_ms: int, deadline: float | None) -> None:
        """Book a unary call. Raises Full or DeadlineTooSoon."""
        held = self.held_ms
        if self._unary_ms + self._streams_ms + cost_ms > self.budget_ms:
            wait = self._throughput.seconds_for(max(cost_ms, held + cost_ms - self.budget_ms // 2))
            raise Full(wait, held, self.budget_ms)
        needed = self._throughput.seconds_for(cost_ms)
        if deadline is not None and self._throughput.rate and time.monotonic() + needed > deadline:
            raise DeadlineTooSoon(f"the audio needs about {needed:.2f} s of computing, more than the deadline leaves")
        self._unary_ms += cost_ms

    def release_unary(self, cost_ms: int) -> None:
        """A unary call was answered."""
        self._unary_ms -= cost_ms
        self._share()

    def _share(self) -> None:
        """Raise grants up to the fair window, in turn, while the budget lasts."""
        if not self._grants:
            return
        limit = int(self.budget_ms * WINDOW_SHARE)
        window = min(WINDOW_MS, limit // len(self._grants))
        for grant in sorted(self._grants, key=lambda g: g.outstanding_ms):
            more = min(window - grant.outstanding_ms, limit - self._streams_ms)
            if grant.demand_ms > grant.unused_ms + max(more, 0):
                lack = grant.demand_ms - grant.unused_ms
                more = lack if self._streams_ms + lack <= limit + self.budget_ms * DEMAND_SHARE else 0
            if more > 0:
                grant.granted_ms += more
                self._streams_ms += more
                grant.notify(grant.granted_ms)
