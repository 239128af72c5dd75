"""The queue is fair, admission keeps to its budget, and one item's failure is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_server.engines.engine import MissingReason, Result, Segment, Word, WordTiming
from align_server.scheduling.admission import Admission, Throughput
from align_server.scheduling.batcher import Batcher
from align_server.scheduling.queue import FairQueue
from align_server.scheduling.work import DeadlineTooSoon, Full, Work

if TYPE_CHECKING:
    from collections.abc import Sequence


def segment(name: str = "s", milliseconds: int = 1000) -> Segment:
    return Segment(name, np.zeros(milliseconds * 16, np.int16), (Word("hello"),))


def work(client: str, name: str = "s", cost_ms: int = 1000, deadline: float | None = None) -> Work:
    return Work(segment(name), client, cost_ms, deadline)


class CountingEngine:
    """An engine of the real interface that times every word at its segment's length, and fails where it is told to."""

    name = "counting"
    languages = ("eng",)
    frame_ms = 10.0
    max_segment_s = 60.0
    revision = "1"

    def __init__(self, poison: str = "", hold: threading.Event | None = None) -> None:
        self.batches: list[list[str]] = []
        self._poison = poison
        self._hold = hold

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def unload(self) -> None: ...

    def cost(self, segment: Segment) -> int:
        return segment.duration_ms

    def align(self, batch: Sequence[Segment]) -> list[Result]:
        if self._hold is not None:
            self._hold.wait(10)
        self.batches.append([item.id for item in batch])
        if any(item.id == self._poison for item in batch):
            raise ValueError("poisoned")
        return [Result((WordTiming(0, item.duration_ms, 1.0),)) for item in batch]


class TestFairQueue:
    async def test_clients_take_turns_whatever_they_have_queued(self) -> None:
        queue = FairQueue()
        for i in range(60):
            queue.put(work("flood", f"flood {i}", 5000))
        queue.put(work("small", "small", 5000))
        first = await queue.take(20_000, 32)
        second = await queue.take(20_000, 32)
        assert "small" in [item.segment.id for item in first + second]

    async def test_an_item_dearer_than_a_whole_round_is_served(self) -> None:
        queue = FairQueue()
        queue.put(work("long", "long", 119_000))
        queue.put(work("short", "short", 1000))
        taken = [item.segment.id for _ in range(2) for item in await queue.take(60_000, 1)]
        assert sorted(taken) == ["long", "short"]

    async def test_a_batch_keeps_within_its_cost_and_count(self) -> None:
        queue = FairQueue()
        for i in range(10):
            queue.put(work("a", str(i), 4000))
        assert len(await queue.take(10_000, 32)) == 2
        assert len(await queue.take(100_000, 3)) == 3
        assert queue.queued_ms == 5 * 4000

    async def test_cancelled_work_is_never_taken(self) -> None:
        queue = FairQueue()
        gone, kept = work("a", "gone"), work("a", "kept")
        queue.put(gone)
        queue.put(kept)
        gone.future.cancel()
        assert [item.segment.id for item in await queue.take(60_000, 32)] == ["kept"]
        assert queue.queued_ms == 0

    async def test_work_past_its_deadline_is_answered_and_not_taken(self) -> None:
        queue = FairQueue()
        late, kept = work("a", "late", deadline=time.monotonic() - 1), work("a", "kept")
        queue.put(late)
        queue.put(kept)
        assert [item.segment.id for item in await queue.take(60_000, 32)] == ["kept"]
        with pytest.raises(DeadlineTooSoon):
            late.future.result()

    async def test_take_waits_for_work(self) -> None:
        queue = FairQueue()
        waiting = asyncio.create_task(queue.take(60_000, 32))
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.put(work("a"))
        assert len(await asyncio.wait_for(waiting, 5)) == 1


class TestAdmission:
    def admission(self, budget_ms: int = 600_000) -> Admission:
        return Admission(budget_ms, Throughput())

    def test_all_grants_together_stay_within_the_streams_share(self) -> None:
        admission = self.admission()
        grants = [admission.open(lambda _: None) for _ in range(50)]
        assert sum(grant.outstanding_ms for grant in grants) <= 0.6 * admission.budget_ms

    def test_a_new_stream_gets_credit_as_earlier_ones_are_answered(self) -> None:
        admission = self.admission(300_000)
        first = admission.open(lambda _: None)
        second = admission.open(lambda _: None)
        assert second.outstanding_ms == 0
        while first.unused_ms:
            assert admission.receive(first, min(10_000, first.unused_ms))
        while first.answered_ms < first.received_ms and not second.outstanding_ms:
            admission.answer(first, 10_000)
        assert second.outstanding_ms > 0

    def test_a_stream_cannot_send_more_than_it_was_granted(self) -> None:
        admission = self.admission()
        grant = admission.open(lambda _: None)
        assert admission.receive(grant, grant.unused_ms)
        assert not admission.receive(grant, 1)

    def test_streams_that_all_need_more_than_their_window_do_not_wait_for_each_other(self) -> None:
        admission = self.admission(600_000)
        grants = [admission.open(lambda _: None) for _ in range(12)]
        for grant in grants:
            admission.demand(grant, 119_000)
        done = 0
        while sending := [grant for grant in grants if grant.unused_ms >= 119_000 and not grant.received_ms]:
            for grant in sending:
                assert admission.receive(grant, 119_000)
            assert sum(grant.outstanding_ms for grant in grants) <= admission.budget_ms
            for grant in sending:
                admission.answer(grant, 119_000)
                done += 1
        assert done == 12

    def test_a_closed_stream_gives_everything_back(self) -> None:
        admission = self.admission()
        grant = admission.open(lambda _: None)
        admission.receive(grant, 5000)
        admission.close(grant)
        assert admission.held_ms == admission.granted_ms == 0
        assert admission.open(lambda _: None).outstanding_ms > 0

    def test_a_full_server_refuses_a_single_call_and_says_when_to_come_back(self) -> None:
        throughput = Throughput()
        throughput.record(100_000, 1.0, 10, 1)
        admission = Admission(100_000, throughput)
        for _ in range(10):
            admission.admit_unary(10_000, None)
        with pytest.raises(Full) as refusal:
            admission.admit_unary(10_000, None)
        assert 0 < refusal.value.retry_after_s < 10
        admission.release_unary(10_000)
        admission.admit_unary(10_000, None)

    def test_a_call_that_cannot_be_ready_in_time_is_refused_at_once(self) -> None:
        throughput = Throughput()
        throughput.record(10_000, 1.0, 1, 1)
        admission = Admission(600_000, throughput)
        with pytest.raises(DeadlineTooSoon):
            admission.admit_unary(100_000, time.monotonic() + 1)


class TestBatcher:
    async def run(self, engine: CountingEngine, items: list[Work]) -> list[Result]:
        batcher = Batcher(engine, Throughput(), lanes=1)
        for item in items:
            batcher.queue.put(item)
        batcher.start()
        try:
            return list(await asyncio.gather(*(item.future for item in items)))
        finally:
            await batcher.stop()

    async def test_waiting_work_shares_a_batch(self) -> None:
        engine = CountingEngine()
        await self.run(engine, [work("a", str(i)) for i in range(5)])
        assert engine.batches == [["0", "1", "2", "3", "4"]]

    async def test_an_item_that_breaks_the_engine_fails_alone(self) -> None:
        items = [work("a", name) for name in ("good", "bad", "fine")]
        results = await self.run(CountingEngine(poison="bad"), items)
        assert [result.words[0].reason for result in results] == [None, MissingReason.ENGINE_FAILED, None]
        assert "error " in results[1].words[0].detail

    async def test_what_nobody_waits_for_is_not_computed(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        batcher = Batcher(engine, Throughput(), lanes=1)
        batcher.start()
        first, second, third = work("a", "first"), work("a", "second"), work("a", "third")
        batcher.queue.put(first)
        await asyncio.sleep(0.05)
        batcher.queue.put(second)
        batcher.queue.put(third)
        second.future.cancel()
        hold.set()
        await third.future
        await batcher.stop()
        assert engine.batches == [["first"], ["third"]]

    async def test_the_loop_stays_free_while_a_batch_is_computed(self) -> None:
        hold = threading.Event()
        batcher = Batcher(CountingEngine(hold=hold), Throughput(), lanes=1)
        batcher.start()
        item = work("a")
        batcher.queue.put(item)
        await asyncio.sleep(0.05)
        assert not item.future.done()
        assert batcher.computing_ms == 1000
        hold.set()
        assert (await item.future).words[0].end_ms == 1000
        await batcher.stop()
