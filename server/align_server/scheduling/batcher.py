"""From the queue to the engine and back: prepare, compute, decode, each in threads of its own.

The event loop takes batches out, hands them from step to step and results over, and computes nothing. While the lanes
compute, as many batches again are prepared. What fails costs the one segment that made it fail, never its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from align_server.engines.engine import MissingReason, Result
from align_server.scheduling.queue import FairQueue, Turns, padded_ms
from align_server.scheduling.throughput import Throughput
from align_server.scheduling.work import DeadlineTooSoon, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align_server.engines.engine import Engine
    from align_server.metrics import Metrics
    from align_server.scheduling.learnt import Facts
    from align_server.scheduling.memory import MemoryGuard
    from align_server.scheduling.work import Work

LONG_MS = 30_000  # items above this are not on all lanes at once...
RESERVE_S = 10.0  # ... for that long after a shorter one came
WINDOW_S = 2.0  # of computing that one stream may have out
NICENESS = 5  # of the computing threads, so that the event loop and the clients come first
LATE = "the deadline passed, or would have before the result was there, while the segment waited"

log = structlog.get_logger()


def worker_pool(size: int, name: str) -> ThreadPoolExecutor:
    """Threads that compute, at a lower priority than the one that talks to clients."""
    return ThreadPoolExecutor(size, thread_name_prefix=f"align-{name}", initializer=_be_nice)


def _be_nice() -> None:
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@dataclass(frozen=True, slots=True)
class Pools:
    """The threads that all models share: those that prepare and those that decode."""

    preprocess: ThreadPoolExecutor
    decode: ThreadPoolExecutor

    @classmethod
    def of(cls, preprocess: int, decode: int) -> Pools:
        """Pools of these sizes."""
        return cls(worker_pool(preprocess, "preprocess"), worker_pool(decode, "decode"))

    def shutdown(self) -> None:
        """Wait for what runs, and end the threads."""
        self.preprocess.shutdown()
        self.decode.shutdown()


@dataclass(slots=True, eq=False)
class _Batch:
    """Work on its way; `cost_ms` is what the batch was expected to cost when it was taken."""

    works: list[Work]
    interactive: bool
    cost_ms: int
    items: list[tuple[Work, Any]] = field(default_factory=list)  # prepared
    scored: list[tuple[Work, Any]] = field(default_factory=list)
    taken_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    prepare_s: float = 0.0

    @property
    def is_long(self) -> bool:
        return max(work.cost_ms for work in self.works) > LONG_MS


class Batcher:
    """Runs one loaded engine over a queue of interactive and one of bulk work, `lanes` batches at a time.

    `facts.batch_ms` is the cost of a batch, `facts.rate` the first guess of the rate; both were measured by then.
    All methods are for the event loop; those that begin with `_job` run in worker threads.
    """

    def __init__(  # noqa: PLR0913  what it is wired to, by name
        self,
        engine: Engine,
        lanes: int,
        *,
        pools: Pools,
        guard: MemoryGuard,
        facts: Facts,
        metrics: Metrics,
        held_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self.engine = engine
        self.throughput = Throughput(lanes, facts.rate)
        self.share = guard.open(facts)
        self.guard = guard
        self.interactive = FairQueue(pads=engine.pads, unwanted=self._drop)
        self.bulk = FairQueue(pads=engine.pads, unwanted=self._drop)
        self._lanes = lanes
        self._facts = facts
        self._metrics = metrics
        self._held_ms = held_ms
        self._pools = pools
        self._lane_pool = worker_pool(lanes, engine.name)
        self._turns = Turns()
        self._ready: dict[bool, deque[_Batch]] = {True: deque(), False: deque()}
        self._ahead = {True: 0, False: 0}  # batches taken and not yet computing
        self._computing: set[_Batch] = set()
        self._in_flight: set[_Batch] = set()
        self._done: deque[tuple[Work, Result]] = deque()
        self._flushing = False
        self._pumping = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.used_at = time.monotonic()
        self._short_at = -RESERVE_S

    def put(self, work: Work) -> None:
        """Take work in. Raises Invalid for what needs more memory than there will ever be."""
        if self._stopped:
            raise Unavailable(f"model {self.engine.name!r} is being unloaded")
        self.guard.check(self.share, work.cost_ms)
        (self.interactive if work.interactive else self.bulk).put(work)
        self.used_at = time.monotonic()
        if work.cost_ms <= LONG_MS:
            self._short_at = self.used_at
        self._pump_soon()

    async def stop(self) -> None:
        """Stop taking batches, wait for those that run, and refuse what is left."""
        self._stopped = True
        for work in (*self.interactive.remove_all(), *self.bulk.remove_all()):
            work.fail(Unavailable(f"model {self.engine.name!r} was unloaded"))
        await self._quiet.wait()
        await asyncio.to_thread(self._lane_pool.shutdown)
        self.guard.close(self.share)

    @property
    def queued_ms(self) -> int:
        """Cost of what waits."""
        return self.interactive.queued_ms + self.bulk.queued_ms

    @property
    def computing_ms(self) -> int:
        """Cost of what is being prepared, computed or decoded."""
        return sum(batch.cost_ms for batch in self._in_flight)

    @property
    def batch_ms(self) -> int:
        """Cost of a full batch."""
        return self._facts.batch_ms

    @property
    def batch_bytes(self) -> float:
        """Memory that a full batch is expected to take."""
        return self._facts.batch_ms * self.share.bytes_per_ms

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        return not (self._in_flight or len(self.interactive) or len(self.bulk))

    def window_ms(self) -> int:
        """How much audio one stream can make use of: two batches for each lane, or what takes WINDOW_S."""
        return max(2 * self._lanes * self._facts.batch_ms, int(WINDOW_S * 1000 * self.throughput.rate))

    def seconds_until_done(self, cost_ms: int) -> float:
        """How long an interactive segment of that cost would take from now, at a guess."""
        now = time.monotonic()
        free_in = 0.0
        if len(self._computing) >= self._lanes:
            ends = (batch.started_at + self.throughput.seconds_alone(batch.cost_ms) for batch in self._computing)
            free_in = max(0.0, min(ends) - now)
        before = self.interactive.queued_ms + sum(batch.cost_ms for batch in self._ready[True])
        return free_in + self.throughput.seconds_for(before) + self.throughput.seconds_alone(cost_ms)

    def _pump_soon(self) -> None:
        """Once for all that comes in one turn of the loop, so that it can share a batch."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Start whatever can start. Called after every change."""
        self._pumping = False
        while len(self._computing) < self._lanes and (batch := self._next_ready()):
            self._ahead[batch.interactive] -= 1
            self._computing.add(batch)
            batch.started_at = time.monotonic()
            self._lane_pool.submit(self._job, self._job_compute, batch)
        for interactive in (True, False):
            queue = self.interactive if interactive else self.bulk
            if interactive and self._is_bulk_due():
                continue
            while len(queue) and self._ahead[interactive] < self._lanes and (batch := self._take(queue)):
                self._ahead[interactive] += 1
                self._in_flight.add(batch)
                self._quiet.clear()
                self.guard.take(self.share, batch.cost_ms)
                self._pools.preprocess.submit(self._job, self._job_prepare, batch)

    def _is_bulk_due(self) -> bool:
        """Whether bulk work that was passed over for long enough still waits for room to be prepared."""
        return (
            bool(len(self.bulk)) and not self._ahead[False] and not self._turns.interactive_next(self._facts.batch_ms)
        )

    def _take(self, queue: FairQueue) -> _Batch | None:
        is_quiet = self.guard.is_quiet
        room = self.guard.room_ms(self.share)
        long = sum(batch.is_long for batch in self._in_flight)
        keep_a_lane = long >= self._lanes - 1 > 0 and time.monotonic() - self._short_at < RESERVE_S
        longest = LONG_MS if keep_a_lane else None
        most = min(self._facts.batch_ms, room)
        works = queue.take(most, longest_ms=longest, room_ms=None if is_quiet else room)
        if not works:
            return None
        return _Batch(works, queue is self.interactive, padded_ms(works, pads=self.engine.pads))

    def _next_ready(self) -> _Batch | None:
        interactive, bulk = self._ready[True], self._ready[False]
        if interactive and not (bulk and not self._turns.interactive_next(bulk[0].cost_ms)):
            batch = interactive.popleft()
        elif bulk:
            batch = bulk.popleft()
        else:
            return None
        waits = bool(bulk or self._ahead[False] or len(self.bulk))
        self._turns.took(batch.cost_ms, interactive=batch.interactive, bulk_waits=waits)
        return batch

    def _drop(self, work: Work) -> None:
        work.fail(DeadlineTooSoon(LATE))  # counted where it is answered

    def _job(self, step: Callable[[_Batch], None], batch: _Batch) -> None:
        """Run a step in a worker thread; a fault of ours costs the batch an answer, and nobody a hang."""
        try:
            step(batch)
        except BaseException:
            log.exception("batch failed", model=self.engine.name)
            for work in batch.works:
                self._hand_over(work, Result.missing(work.segment, MissingReason.ENGINE_FAILED, "see the server's log"))
            self._loop.call_soon_threadsafe(self._abandoned, batch)

    def _job_prepare(self, batch: _Batch) -> None:
        started = time.monotonic()
        alone = self.throughput.seconds_alone
        items = []
        late = []
        for work in batch.works:
            if not work.can_be_done_in(alone(work.cost_ms)):
                late.append(work)
                continue
            work.taken_at = batch.taken_at
            step = self._guarded(self.engine.prepare, work.segment, work)
            work.prepared_at = time.monotonic()
            if isinstance(step, Result):
                self._hand_over(work, step)
            else:
                items.append((work, step))
        batch.items = items
        batch.prepare_s = time.monotonic() - started
        self._loop.call_soon_threadsafe(self._prepared, batch, late)

    def _prepared(self, batch: _Batch, late: Sequence[Work]) -> None:
        for work in late:
            self._drop(work)
        if batch.items:
            self._ready[batch.interactive].append(batch)
        else:
            self._ahead[batch.interactive] -= 1
            self._finished(batch)
        self.pump()

    def _abandoned(self, batch: _Batch) -> None:
        if batch in self._computing:
            self._computing.discard(batch)
        elif not batch.scored:
            self._ahead[batch.interactive] -= 1
        self._finished(batch)
        self.pump()

    def _job_compute(self, batch: _Batch) -> None:
        alone = self.throughput.seconds_alone
        items, late = batch.items, []
        batch.items = []
        for work, item in items:
            if work.can_be_done_in(alone(work.cost_ms)):
                batch.items.append((work, item))
            else:
                late.append(work)
        if batch.items:
            batch.scored = self._compute(batch.items)
        now = time.monotonic()
        for work, _ in batch.scored:
            work.computed_at = now
        seconds = now - batch.started_at
        self._loop.call_soon_threadsafe(self._computed, batch, late, seconds)
        self._pools.decode.submit(self._job, self._job_decode, batch)

    def _compute(self, items: Sequence[tuple[Work, Any]]) -> list[tuple[Work, Any]]:
        """Scores, or results where the engine fails: the batch is halved until the one segment is found."""
        try:
            scored = self.engine.compute([item for _, item in items])
            return list(zip((work for work, _ in items), scored, strict=True))
        except Exception as caught:  # noqa: BLE001  whatever an engine raises, its neighbours must get their times
            error = caught
        ran_out = is_out_of_memory(error)
        if ran_out:
            error = error.with_traceback(None)  # its frames hold what had been allocated
            self._loop.call_soon_threadsafe(self._ran_out, padded_ms([w for w, _ in items], pads=self.engine.pads))
            self.guard.memory.trim()
        if len(items) > 1:
            half = len(items) // 2
            return [*self._compute(items[:half]), *self._compute(items[half:])]
        work, item = items[0]
        return [(work, self._once_more(work, item) if ran_out else self._failed(work, error))]

    def _once_more(self, work: Work, item: Any) -> Any:
        """A segment that ran out of memory may have had bad neighbours on other lanes: try when they are done."""
        time.sleep(self.throughput.seconds_alone(self._facts.batch_ms))
        return self._guarded(lambda one: self.engine.compute([one])[0], item, work)

    def _guarded(self, step: Callable[[Any], Any], given: Any, work: Work) -> Any:
        try:
            return step(given)
        except Exception as error:  # noqa: BLE001  the same
            return self._failed(work, error)

    def _failed(self, work: Work, error: Exception) -> Result:
        """The result of a segment on which the engine raised."""
        error_id = uuid.uuid4().hex[:12]
        log.error("segment failed", model=self.engine.name, segment=work.segment.id, error_id=error_id, exc_info=error)
        self._metrics.failed(self.engine.name, out_of_memory=is_out_of_memory(error))
        why = "the server ran out of memory for it" if is_out_of_memory(error) else "the model raised an error"
        return Result.missing(work.segment, MissingReason.ENGINE_FAILED, f"{why}; see error {error_id} in its log")

    def _ran_out(self, cost_ms: int) -> None:
        self.guard.ran_out(self.share, cost_ms)
        self._metrics.ran_out(self.engine.name)
        log.warning("out of memory; smaller batches from now on", model=self.engine.name, cost_ms=cost_ms)

    def _computed(self, batch: _Batch, late: Sequence[Work], seconds: float) -> None:
        for work in late:
            self._drop(work)
        self._computing.discard(batch)
        works = [work for work, _ in batch.items]
        if works:
            cost = padded_ms(works, pads=self.engine.pads)
            self.throughput.record(cost, seconds)
            self._metrics.batch(self.engine.name, cost_ms=sum(work.cost_ms for work in works), padded_ms=cost)
            waits = (batch.taken_at - work.accepted_at for work in works)
            self._metrics.waited(self.engine.name, waits, interactive=batch.interactive)
            self._metrics.step(self.engine.name, "prepare", batch.prepare_s)
            self._metrics.step(self.engine.name, "compute", seconds)
            if log.is_enabled_for(logging.DEBUG):
                log.debug(
                    "batch",
                    model=self.engine.name,
                    segments=len(works),
                    audio_ms=sum(work.segment.duration_ms for work in works),
                    cost_ms=cost,
                    prepare_s=round(batch.prepare_s, 4),
                    compute_s=round(seconds, 4),
                    memory_mb=self.guard.memory.used() >> 20,
                )
        self.pump()

    def _job_decode(self, batch: _Batch) -> None:
        started = time.monotonic()
        for work, item in batch.scored:
            result = item if isinstance(item, Result) else self._guarded(self.engine.decode, item, work)
            self._hand_over(work, result)
        self._loop.call_soon_threadsafe(self._decoded, batch, time.monotonic() - started)

    def _decoded(self, batch: _Batch, seconds: float) -> None:
        self._metrics.step(self.engine.name, "decode", seconds)
        self._finished(batch)
        self.pump()

    def _finished(self, batch: _Batch) -> None:
        self._in_flight.discard(batch)
        self.guard.give_back(self.share, batch.cost_ms)
        self.guard.look(self._held_ms())
        self.used_at = time.monotonic()
        if not self._in_flight:
            self._quiet.set()

    def _hand_over(self, work: Work, result: Result) -> None:
        """From a worker thread: results that are ready together wake the event loop once."""
        self._done.append((work, result))
        with self._lock:
            if self._flushing:
                return
            self._flushing = True
        self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._flushing = False
        while self._done:
            work, result = self._done.popleft()
            if work.deliver(result):
                self.throughput.answered(work.segment.duration_ms)
                self._metrics.answered(self.engine.name, work.segment.duration_ms, interactive=work.interactive)
            else:
                self._metrics.in_vain(self.engine.name)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an engine ran out of memory, by the ways in which Python, numpy and torch say so."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("OutOfMemory" in type(error).__name__ or any(words in str(error) for words in OUT_OF_MEMORY))
    )


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")
