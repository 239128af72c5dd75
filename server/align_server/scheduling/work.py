"""One segment on its way through the server, and the ways in which it can be refused.

Knows neither gRPC nor torch: the edge turns a refusal into a status, the batcher hands a result over.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align_server.engines.engine import Result, Segment


class Refusal(Exception):  # noqa: N818  a refusal is an answer, not a fault
    """The server does not take this work; the subclass says why."""


class Full(Refusal):
    """No room now; `retry_after_s` is when there should be, from the backlog and the measured rate."""

    def __init__(self, retry_after_s: float, queued_ms: int, limit_ms: int) -> None:
        super().__init__(f"the queue holds {queued_ms / 1000:.0f} of {limit_ms / 1000:.0f} s of audio")
        self.retry_after_s = retry_after_s


class DeadlineTooSoon(Refusal):
    """The result could not be ready before the caller stops waiting."""


class Unavailable(Refusal):
    """The server or the model is loading, draining or failed."""


class UnknownModel(Refusal):
    """This server does not serve a model of that name."""


class Invalid(Refusal):
    """A field of the request cannot be used; `field` is its path in the contract."""

    def __init__(self, field_path: str, description: str) -> None:
        super().__init__(f"{field_path}: {description}")
        self.field = field_path
        self.description = description


@dataclass(slots=True, eq=False)
class Work:
    """A segment that waits for its result. `deadline` is on the clock of `time.monotonic`."""

    segment: Segment
    client: str
    cost_ms: int
    deadline: float | None = None
    future: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    accepted_at: float = field(default_factory=time.monotonic)

    @property
    def is_wanted(self) -> bool:
        """Whether anyone still waits for the result."""
        if self.future.done():
            return False
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.future.set_exception(DeadlineTooSoon("the deadline passed while the segment was queued"))
            return False
        return True

    def deliver(self, result: Result) -> bool:
        """Hand the result over; False where nobody waits for it any more."""
        if self.future.done():
            return False
        self.future.set_result(result)
        return True
