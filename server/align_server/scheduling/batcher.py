"""From the queue to the engine and back: prepare, compute, decode, each in threads of its own.

The event loop takes batches out, hands them from step to step and results over, and computes nothing. What fails costs
the one segment that made it fail, never its neighbours.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from align_server.engines.engine import MissingReason, Result
from align_server.scheduling.answers import Answers
from align_server.scheduling.batch import LONG_MS, Batch, groups
from align_server.scheduling.pools import worker_pool
from align_server.scheduling.queue import FairQueue, Turns, padded_ms
from align_server.scheduling.steps import Steps
from align_server.scheduling.throughput import Throughput
from align_server.scheduling.work import DeadlineTooSoon, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from align_server.engines.engine import Engine
    from align_server.metrics import Metrics
    from align_server.scheduling.learnt import Facts
    from align_server.scheduling.memory import MemoryGuard
    from align_server.scheduling.pools import Pools
    from align_server.scheduling.work import Work

RESERVE_S = 10.0  # for which long items are not on all lanes, after a shorter one came
WINDOW_S = 0.3  # of computing that one stream may have out: what the first has and does not use, the next ones lack
HOLD_S = 0.1  # that a bulk result may wait for others: messages cost, and so does going from step to step
LATE = "the deadline passed, or would have before the result was there, while the segment waited"

T = TypeVar("T")

log = structlog.get_logger()


class Batcher:
    """Runs one loaded engine over a queue of interactive and one of bulk work, `lanes` batches at a time.

    With `pipelined` the pools prepare as many batches again as are computed, and decode. Else each lane does all of it
    for its own batch: where the same cores do everything, more threads only take the interpreter's lock from it.

    `facts.batch_ms` is the cost of a batch, `facts.rate` the first guess of the rate; both were measured by then.
    Public methods are for the event loop. Those that begin with `_job`, and what they call, run in worker threads.
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
        pipelined: bool,
        held_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._pipelined = pipelined
        self.engine = engine
        self.revision = engine.revision
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
        self._steps = Steps(
            engine,
            metrics,
            guard.memory,
            ran_out=lambda cost_ms: self._loop.call_soon_threadsafe(self._ran_out, cost_ms),
            patience_s=lambda: self.throughput.seconds_alone(facts.batch_ms),
        )
        self._turns = Turns()
        self._ready: dict[bool, deque[Batch]] = {True: deque(), False: deque()}
        self._ahead = {True: 0, False: 0}  # batches taken and not yet computing
        self._spare: Batch | None = None  # bulk work for the first lane that is done
        self._computing: set[Batch] = set()
        self._in_flight: set[Batch] = set()
        self._pumping = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(self._loop, self._deliver)
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
        if not self._pipelined:
            while len(self._computing) < self._lanes and (batch := self._next_taken()):
                batch.taken_at = batch.started_at = time.monotonic()
                self._begin(batch)
                self._lane_pool.submit(self._job_lane, batch)
            if self._spare is None and len(self._computing) >= self._lanes:
                self._spare = self._take(interactive=False)
            return
        while len(self._computing) < self._lanes and (batch := self._next_ready()):
            self._computing.add(batch)
            batch.started_at = time.monotonic()
            self._lane_pool.submit(self._job, self._job_compute, batch)
        for interactive in (True, False):
            if interactive and self._is_bulk_due():
                continue
            while self._ahead[interactive] < self._lanes and (batch := self._take(interactive=interactive)):
                self._ahead[interactive] += 1
                self.guard.take(self.share, batch.cost_ms)
                self._pools.preprocess.submit(self._job, self._job_prepare, batch)

    def _is_bulk_due(self) -> bool:
        """Whether bulk work that was passed over for long enough still waits for room to be prepared."""
        waits = self._bulk_waits and not self._ahead[False]
        return waits and not self._turns.interactive_next(self._facts.batch_ms)

    def _take(self, *, interactive: bool) -> Batch | None:
        queue = self.interactive if interactive else self.bulk
        if not len(queue):
            return None
        is_quiet = self.guard.is_quiet
        room = self.guard.room_ms(self.share)
        long = sum(batch.is_long for batch in self._in_flight)
        keep_a_lane = long >= self._lanes - 1 > 0 and time.monotonic() - self._short_at < RESERVE_S
        longest = LONG_MS if keep_a_lane else None
        most = min(self._facts.batch_ms, room)
        works = queue.take(most, longest_ms=longest, room_ms=None if is_quiet else room)
        if not works:
            return None
        batch = Batch(works, interactive, padded_ms(works, pads=self.engine.pads))
        self._in_flight.add(batch)
        self._quiet.clear()
        return batch

    def _next_taken(self) -> Batch | None:
        """The next batch, not yet prepared: its lane does that too."""
        for interactive in (False, True) if self._is_bulk_due() else (True, False):
            if not interactive and (spare := self._take_spare()):
                return spare
            if batch := self._take(interactive=interactive):
                return batch
        return None

    @property
    def _bulk_waits(self) -> bool:
        return bool(len(self.bulk) or self._spare)

    def _take_spare(self) -> Batch | None:
        """From any thread: the batch that waits for a lane."""
        with self._lock:
            spare, self._spare = self._spare, None
        return spare

    def _begin(self, batch: Batch) -> None:
        """A lane has it."""
        self._computing.add(batch)
        self.guard.take(self.share, batch.cost_ms)
        self._turns.took(batch.cost_ms, interactive=batch.interactive, bulk_waits=self._bulk_waits)

    def _next_ready(self) -> Batch | None:
        interactive, bulk = self._ready[True], self._ready[False]
        if interactive and not (bulk and not self._turns.interactive_next(bulk[0].cost_ms)):
            batch = interactive.popleft()
        elif bulk:
            batch = bulk.popleft()
        else:
            return None
        self._ahead[batch.interactive] -= 1
        waits = bool(bulk or self._ahead[False] or len(self.bulk))
        self._turns.took(batch.cost_ms, interactive=batch.interactive, bulk_waits=waits)
        return batch

    def _drop(self, work: Work) -> None:
        work.fail(DeadlineTooSoon(LATE))  # counted where it is answered

    def _job(self, step: Callable[[Batch], T], batch: Batch) -> T | None:
        """Run a step in a worker thread; a fault of ours costs the batch an answer, and nobody a hang."""
        try:
            return step(batch)
        except BaseException:
            log.exception("batch failed", model=self.engine.name)
            for work in batch.works:
                failed = Result.missing(work.segment, MissingReason.ENGINE_FAILED, "see the server's log")
                self._answers.put(work, failed)
            self._answers.leave()
            self._loop.call_soon_threadsafe(self._abandoned, batch)
            return None

    def _job_prepare(self, batch: Batch) -> None:
        late: list[Work] = []
        batch.items = self._prepare(batch, batch.works, late)
        self._loop.call_soon_threadsafe(self._prepared, batch, late)

    def _prepare(self, batch: Batch, works: Sequence[Work], late: list[Work]) -> list[tuple[Work, Any]]:
        """Some of a batch's work, ready to be computed; what is too late is added to `late`."""
        started = time.monotonic()
        items = []
        for work in self._on_time(works, late):
            work.taken_at = batch.taken_at
            item = self._steps.prepare(work)
            work.prepared_at = time.monotonic()
            if isinstance(item, Result):
                self._answers.put(work, item)
                self._answers.leave()
            else:
                items.append((work, item))
        batch.prepare_s += time.monotonic() - started
        return items

    def _on_time(self, works: Sequence[Work], late: list[Work]) -> list[Work]:
        """The work that can still be done in time; what cannot is added to `late`."""
        wanted: list[Work] = []
        for work in works:
            on_time = work.can_be_done_in(self.throughput.seconds_alone(work.cost_ms))
            (wanted if on_time else late).append(work)
        return wanted

    def _prepared(self, batch: Batch, late: Sequence[Work]) -> None:
        for work in late:
            self._drop(work)
        if batch.items:
            self._ready[batch.interactive].append(batch)
        else:
            self._ahead[batch.interactive] -= 1
            self._finished(batch)
        self.pump()

    def _abandoned(self, batch: Batch) -> None:
        if batch in self._computing:
            self._computing.discard(batch)
        elif self._pipelined and not batch.is_computed:
            self._ahead[batch.interactive] -= 1
        self._finished(batch)
        self.pump()

    def _groups(self, batch: Batch, works: Sequence[Work]) -> Iterator[list[Work]]:
        """What goes from step to step together: all that is padded to one length; else what takes HOLD_S, or one."""
        if self.engine.pads:
            return iter([list(works)])
        return groups(works, self.throughput.seconds_alone, 0.0 if batch.interactive else HOLD_S)

    def _job_lane(self, first: Batch) -> None:
        """One batch, and as long as nobody waits for an answer the spare: a lane that asks the loop for work idles."""
        batch: Batch | None = first
        while batch:
            batch = self._job(self._job_alone, batch)

    def _job_alone(self, batch: Batch) -> Batch | None:
        """All three steps in the lane's own thread; the batch to go on with.

        Each result leaves when it is there, or soon.
        """
        late: list[Work] = []
        for works in self._groups(batch, batch.works):
            self._answers.leave()  # of the group before; those of the last one with the end of the batch
            scored = self._steps.compute(self._prepare(batch, works, late))
            now = time.monotonic()
            for work, item in scored:
                work.computed_at = now
                self._answers.put(work, self._steps.decode(work, item))
                batch.done.append(work)
            batch.decode_s += time.monotonic() - now
        now = time.monotonic()
        following = None if len(self.interactive) else self._take_spare()
        if following:
            following.taken_at = following.started_at = now
        self._loop.call_soon_threadsafe(self._over, batch, late, now - batch.started_at, following)
        return following

    def _over(self, batch: Batch, late: Sequence[Work], seconds: float, following: Batch | None) -> None:
        self._answers.deliver()
        self._book(batch, late, seconds)
        self._metrics.step(self.engine.name, "decode", batch.decode_s)
        self._finished(batch)
        if following:
            self._begin(following)
        self.pump()

    def _job_compute(self, batch: Batch) -> None:
        """The second step of what was prepared ahead; another thread decodes meanwhile."""
        late: list[Work] = []
        prepared = dict(batch.items)
        for works in self._groups(batch, list(prepared)):
            wanted = self._on_time(works, late)
            scored = self._steps.compute([(work, prepared[work]) for work in wanted])
            batch.done += wanted
            self._pass_on(batch, scored)
        seconds = time.monotonic() - batch.started_at
        with self._lock:
            batch.is_computed = True
            is_over = not batch.is_decoding
        self._loop.call_soon_threadsafe(self._computed, batch, late, seconds)
        if is_over:
            self._loop.call_soon_threadsafe(self._decoded, batch)

    def _pass_on(self, batch: Batch, scored: Sequence[tuple[Work, Any]]) -> None:
        """Have decoded what is computed. What comes while the batch's decoder is at work, it finds by itself."""
        if not scored:
            return
        now = time.monotonic()
        for work, _ in scored:
            work.computed_at = now
        with self._lock:
            batch.scored.extend(scored)
            is_at_work, batch.is_decoding = batch.is_decoding, True
        if not is_at_work:
            self._pools.decode.submit(self._job, self._job_decode, batch)

    def _ran_out(self, cost_ms: int) -> None:
        self.guard.ran_out(self.share, cost_ms)
        self._metrics.ran_out(self.engine.name)
        log.warning("out of memory; smaller batches from now on", model=self.engine.name, cost_ms=cost_ms)

    def _computed(self, batch: Batch, late: Sequence[Work], seconds: float) -> None:
        self._book(batch, late, seconds)
        self.pump()

    def _book(self, batch: Batch, late: Sequence[Work], seconds: float) -> None:
        """Its lane is done with it."""
        for work in late:
            self._drop(work)
        self._computing.discard(batch)
        works = batch.done
        if works:
            cost = padded_ms(works, pads=self.engine.pads)
            self.throughput.record(cost, seconds)
            self._metrics.batch(self.engine.name, cost_ms=sum(work.cost_ms for work in works), padded_ms=cost)
            waits = (batch.taken_at - work.accepted_at for work in works)
            self._metrics.waited(self.engine.name, waits, interactive=batch.interactive)
            self._metrics.step(self.engine.name, "prepare", batch.prepare_s)
            self._metrics.step(
                self.engine.name, "compute", seconds - (0 if self._pipelined else batch.prepare_s + batch.decode_s)
            )
            if log.is_enabled_for(logging.DEBUG):
                memory_mb = self.guard.memory.used() >> 20
                log.debug("batch", model=self.engine.name, **batch.told(seconds), cost_ms=cost, memory_mb=memory_mb)

    def _job_decode(self, batch: Batch) -> None:
        started = time.monotonic()
        while True:
            with self._lock:
                if not batch.scored:
                    batch.is_decoding = False
                    is_over = batch.is_computed
                    break
                work, item = batch.scored.popleft()
            self._answers.put(work, self._steps.decode(work, item))
            if batch.interactive:
                self._answers.leave()
        self._answers.leave()
        batch.decode_s += time.monotonic() - started
        if is_over:
            self._loop.call_soon_threadsafe(self._decoded, batch)

    def _decoded(self, batch: Batch) -> None:
        self._metrics.step(self.engine.name, "decode", batch.decode_s)
        self._finished(batch)
        self.pump()

    def _finished(self, batch: Batch) -> None:
        if batch not in self._in_flight:
            return  # given up before
        self._in_flight.discard(batch)
        self.guard.give_back(self.share, batch.cost_ms)
        self.guard.look(self._held_ms())
        self.used_at = time.monotonic()
        if not self._in_flight:
            self._quiet.set()

    def _deliver(self, work: Work, result: Result) -> None:
        if work.deliver(result):
            self.throughput.answered(work.segment.duration_ms)
            self._metrics.answered(self.engine.name, work.segment.duration_ms, interactive=work.interactive)
        else:
            self._metrics.in_vain(self.engine.name)
