"""An engine's three steps for work in a batch, so that what fails costs the one segment that made it fail.

Knows nothing of queues or lanes. Everything here runs in worker threads, several at once.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import structlog

from align_server.engines.engine import MissingReason, Result
from align_server.scheduling.memory import is_out_of_memory
from align_server.scheduling.queue import padded_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align_server.engines.engine import Engine
    from align_server.metrics import Metrics
    from align_server.scheduling.memory import Memory
    from align_server.scheduling.work import Work

log = structlog.get_logger()


class Steps:
    """One engine's steps. `ran_out` is called with the cost of a batch that found no memory.

    `patience_s` says how long a segment that ran out of memory waits for its neighbours on other lanes.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        memory: Memory,
        *,
        ran_out: Callable[[int], object],
        patience_s: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._memory = memory
        self._ran_out = ran_out
        self._patience_s = patience_s

    def prepare(self, work: Work) -> Any:
        """What the engine computes with; a Result where there is nothing to compute."""
        return self._guarded(self._engine.prepare, work.segment, work)

    def compute(self, items: Sequence[tuple[Work, Any]]) -> list[tuple[Work, Any]]:
        """Scores, or results where the engine fails: the batch is halved until the one segment is found."""
        if not items:
            return []
        try:
            scored = self._engine.compute([item for _, item in items])
            return list(zip((work for work, _ in items), scored, strict=True))
        except Exception as caught:  # noqa: BLE001  whatever an engine raises, its neighbours must get their times
            error = caught
        ran_out = is_out_of_memory(error)
        if ran_out:
            error = error.with_traceback(None)  # its frames hold what had been allocated
            self._ran_out(padded_ms([work for work, _ in items], pads=self._engine.pads))
            self._memory.trim()
        if len(items) > 1:
            half = len(items) // 2
            return [*self.compute(items[:half]), *self.compute(items[half:])]
        work, item = items[0]
        return [(work, self._once_more(work, item) if ran_out else self._failed(work, error))]

    def decode(self, work: Work, scored: Any) -> Result:
        """The times of what was computed."""
        return scored if isinstance(scored, Result) else self._guarded(self._engine.decode, scored, work)

    def _once_more(self, work: Work, item: Any) -> Any:
        """A segment that ran out of memory may have had bad neighbours on other lanes: try when they are done."""
        time.sleep(self._patience_s())
        return self._guarded(lambda one: self._engine.compute([one])[0], item, work)

    def _guarded(self, step: Callable[[Any], Any], given: Any, work: Work) -> Any:
        try:
            return step(given)
        except Exception as error:  # noqa: BLE001  the same
            return self._failed(work, error)

    def _failed(self, work: Work, error: Exception) -> Result:
        """The result of a segment on which the engine raised."""
        error_id = uuid.uuid4().hex[:12]
        name = self._engine.name
        log.error("segment failed", model=name, segment=work.segment.id, error_id=error_id, exc_info=error)
        self._metrics.failed(name, out_of_memory=is_out_of_memory(error))
        why = "the server ran out of memory for it" if is_out_of_memory(error) else "the model raised an error"
        return Result.missing(work.segment, MissingReason.ENGINE_FAILED, f"{why}; see error {error_id} in its log")
