"""One segment on its way through the server, and the ways in which it can be refused.

Knows neither gRPC nor torch: the edge turns a refusal into a status, the batcher hands a result over.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from align_server.engines.engine import Result, Segment


class Refusal(Exception):  # noqa: N818  a refusal is an answer, not a fault
    """The server does not take this work; the subclass says why. `reason` names it in metrics."""

    reason: ClassVar[str] = "refused"


class Full(Refusal):
    """No room now; `retry_after_s` is when there should be, from the backlog and the measured rate."""

    reason = "full"

    def __init__(self, retry_after_s: float, queued_ms: int, limit_ms: int) -> None:
        super().__init__(f"the queue holds {queued_ms / 1000:.0f} of {limit_ms / 1000:.0f} s of audio")
        self.retry_after_s = retry_after_s


class DeadlineTooSoon(Refusal):
    """The result could not be ready before the caller stops waiting."""

    reason = "deadline"


class Unavailable(Refusal):
    """The server is draining, or the model is being unloaded: the same request may be sent again."""

    reason = "unavailable"


class ModelUnavailable(Refusal):
    """The model cannot be loaded, or cannot be unloaded while it is in use."""

    reason = "model failed"


class UnknownModel(Refusal):
    """This server does not serve a model of that name."""

    reason = "unknown model"


class Invalid(Refusal):
    """A field of the request cannot be used; `field` is its path in the contract."""

    reason = "invalid"

    def __init__(self, field_path: str, description: str) -> None:
        super().__init__(f"{field_path}: {description}")
        self.field = field_path
        self.description = description


@dataclass(slots=True, eq=False)
class Work:
    """A segment that waits for its result.

    `interactive` work is what somebody waits for: single calls, and streams with one short segment out.
    `deadline` is on the clock of `time.monotonic`. The future is touched on the event loop alone.
    """

    segment: Segment
    client: str
    cost_ms: int
    interactive: bool = False
    deadline: float | None = None
    future: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    accepted_at: float = field(default_factory=time.monotonic)
    taken_at: float = 0.0  # into a batch; 0 while it waits, as below
    prepared_at: float = 0.0
    computed_at: float = 0.0

    def can_be_done_in(self, seconds: float) -> bool:
        """Whether somebody will still wait for the result when that long has gone by. Safe in any thread."""
        if self.future.done():
            return False
        return self.deadline is None or time.monotonic() + seconds <= self.deadline

    def deliver(self, result: Result) -> bool:
        """Hand the result over; False where nobody waits for it any more."""
        if self.future.done():
            return False
        self.future.set_result(result)
        return True

    def fail(self, refusal: Refusal) -> bool:
        """Answer with a refusal; False where nobody waits any more."""
        if self.future.done():
            return False
        self.future.set_exception(refusal)
        return True
