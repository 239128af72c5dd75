"""From the queue to the engine and back: batches are computed in worker threads, one per lane.

The event loop only takes batches out and hands results over. An engine that raises costs the one
segment that made it raise, never its neighbours.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from align_server.engines.engine import MissingReason, Result
from align_server.scheduling.queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align_server.engines.engine import Engine, Segment
    from align_server.scheduling.admission import Throughput

MAX_BATCH_MS = 90_000  # audio in one batch: longer ones are no faster, and keep other clients waiting
MAX_BATCH_ITEMS = 48

log = structlog.get_logger()


class Batcher:
    """Runs one engine over one fair queue with `lanes` batches at a time."""

    def __init__(self, engine: Engine, throughput: Throughput, lanes: int) -> None:
        self.engine = engine
        self.queue = FairQueue()
        self.computing_ms = 0
        self._throughput = throughput
        self._lanes = lanes
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix=f"align-{engine.name}")
        self._tasks: list[asyncio.Task[None]] = []

    async def load(self) -> None:
        """Load the engine and run one real forward. Raises EngineLoadError."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self.engine.load)
        await loop.run_in_executor(self._pool, self.engine.warm_up)

    def start(self) -> None:
        """Begin to compute."""
        self._tasks = [asyncio.create_task(self._lane()) for _ in range(self._lanes)]

    async def stop(self) -> None:
        """Stop taking batches; one that is being computed is finished and dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)
        self.engine.unload()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        return not len(self.queue) and not self.computing_ms

    async def _lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self.queue.take(MAX_BATCH_MS, MAX_BATCH_ITEMS)
            cost = sum(work.cost_ms for work in batch)
            self.computing_ms += cost
            started = time.monotonic()
            try:
                results = await loop.run_in_executor(self._pool, self._compute, [work.segment for work in batch])
            finally:
                self.computing_ms -= cost
            seconds = time.monotonic() - started
            self._throughput.record(cost, seconds, len(batch), self._lanes)
            for work, result in zip(batch, results, strict=True):
                work.deliver(result)
            log.debug("batch", model=self.engine.name, segments=len(batch), audio_ms=cost, seconds=round(seconds, 4))

    def _compute(self, segments: Sequence[Segment]) -> list[Result]:
        """Runs in a worker thread. One result for each segment, whatever the engine does."""
        try:
            return self.engine.align(segments)
        except Exception:  # whatever an engine raises, its neighbours must get their times
            if len(segments) > 1:
                return [result for segment in segments for result in self._compute([segment])]
            error_id = uuid.uuid4().hex[:12]
            log.exception("segment failed", model=self.engine.name, segment=segments[0].id, error_id=error_id)
            return [Result.missing(segments[0], MissingReason.ENGINE_FAILED, f"error {error_id} in the server's log")]
