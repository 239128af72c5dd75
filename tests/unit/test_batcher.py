"""The batcher keeps its lanes busy, its clients apart, and one item's failure its own."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from align_server.engines.engine import MissingReason, Result
from align_server.scheduling.memory import MemoryGuard, is_out_of_memory
from align_server.scheduling.steps import Steps
from align_server.scheduling.work import DeadlineTooSoon, Invalid, Unavailable, Work
from counting import GB, CountingEngine, FixedMemory, batcher, work

if TYPE_CHECKING:
    from align_server.scheduling.batcher import Batcher


async def until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def run(engine: CountingEngine, items: list[Work], batch_ms: int = 60_000, lanes: int = 1) -> list[Result]:
    running = batcher(engine, lanes, batch_ms=batch_ms)
    try:
        for item in items:
            running.put(item)
        return list(await asyncio.wait_for(asyncio.gather(*(item.future for item in items)), 10))
    finally:
        await running.stop()


async def blocked(hold: threading.Event, engine: CountingEngine, lanes: int = 1, **given: Any) -> Batcher:
    """A batcher whose lanes all compute something that does not end before `hold` is set."""
    hold.clear()
    running = batcher(engine, lanes, **given)
    for i in range(2 * lanes):  # one that is computed and one that is prepared, for each lane
        running.put(work("blocker", f"blocker {i}", 60_000))
        await until(lambda: len(engine.prepared) > i)  # noqa: B023  awaited at once
    return running


class TestPipeline:
    async def test_waiting_work_shares_batches_of_the_learnt_size(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold, pads=True)
        running = await blocked(hold, engine, batch_ms=5000)
        items = [work("a", str(i)) for i in range(10)]
        for item in items:
            running.put(item)
        hold.set()
        await asyncio.gather(*(item.future for item in items))
        await running.stop()
        assert [len(batch) for batch in engine.batches[2:]] == [5, 5]

    async def test_a_single_item_is_computed_at_once(self) -> None:
        engine = CountingEngine()
        await run(engine, [work()])
        assert engine.batches == [["s"]]

    async def test_each_step_has_threads_of_its_own(self) -> None:
        engine = CountingEngine()
        await run(engine, [work("a", str(i)) for i in range(20)], batch_ms=3000, lanes=2)
        prepare, compute, decode = engine.threads.values()
        assert prepare
        assert len(prepare | compute | decode) == len(prepare) + len(compute) + len(decode)
        assert not any("MainThread" in names for names in (prepare, compute, decode))

    async def test_a_segment_leaves_when_it_is_done_where_nothing_is_padded(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = batcher(engine, batch_ms=60_000, rate=15.0)
        items = [work("a", str(i)) for i in range(3)]
        for item in items:
            running.put(item)
        await until(lambda: "2" in engine.prepared)
        engine._hold = None
        engine._seconds = 0.05
        hold.set()
        await items[0].future
        assert not items[2].future.done()
        await items[2].future
        assert engine.batches == [["0"], ["1"], ["2"]]
        await running.stop()

    @pytest.mark.parametrize("pipelined", [True, False])
    async def test_segments_that_take_no_time_go_from_step_to_step_together(self, *, pipelined: bool) -> None:
        engine = CountingEngine()
        running = batcher(engine, rate=15.0, pipelined=pipelined)
        items = [work("a", str(i), 500) for i in range(5)]  # 33 ms each
        for item in items:
            running.put(item)
        await asyncio.gather(*(item.future for item in items))
        assert engine.batches == [["0", "1", "2"], ["3", "4"]]
        await running.stop()

    async def test_the_next_batch_is_prepared_while_one_is_computed(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine)
        assert engine.batches == []
        assert engine.prepared == ["blocker 0", "blocker 1"]
        late = work("a", "not yet")
        running.put(late)
        await asyncio.sleep(0.05)
        assert "not yet" not in engine.prepared  # prepared work takes memory: only as much as lanes need next
        hold.set()
        await late.future
        await running.stop()

    async def test_the_loop_stays_free_while_a_batch_is_computed(self) -> None:
        hold = threading.Event()
        running = await blocked(hold, CountingEngine(hold=hold))
        assert running.computing_ms == 120_000
        assert not running.is_idle
        hold.set()
        await running.stop()

    async def test_results_are_counted_once_and_in_seconds_of_audio(self) -> None:
        engine = CountingEngine()
        running = batcher(engine)
        items = [work("a", str(i), 2000) for i in range(5)]
        for item in items:
            running.put(item)
        await asyncio.gather(*(item.future for item in items))
        assert (running.throughput.segments_done, running.throughput.audio_done_ms) == (5, 10_000)
        await running.stop()

    async def test_what_nobody_can_say_is_answered_without_computing(self) -> None:
        class Mute(CountingEngine):
            def prepare(self, segment: object) -> Result:  # noqa: ARG002  the interface has it
                return Result(())

        engine = Mute()
        assert await run(engine, [work()]) == [Result(())]
        assert engine.batches == []


class TestLanesThatDoAll:
    """As on a CPU, where the same cores do everything."""

    async def at_work(self, engine: CountingEngine, names: list[str]) -> tuple[Batcher, list[Work]]:
        """A batcher with one lane, which has begun the first of these; each is a batch."""
        running = batcher(engine, batch_ms=1000, pipelined=False)
        items = [work("bulk", name) for name in names]
        for item in items:
            running.put(item)
        await until(lambda: engine.prepared)
        return running, items

    async def test_a_segment_stays_in_one_thread(self) -> None:
        engine = CountingEngine()
        running = batcher(engine, 2, batch_ms=3000, pipelined=False)
        items = [work("a", str(i)) for i in range(20)]
        for item in items:
            running.put(item)
        results = await asyncio.wait_for(asyncio.gather(*(item.future for item in items)), 10)
        await running.stop()
        assert [result.words[0].end_ms for result in results] == [1000] * 20
        assert engine.threads["prepare"] == engine.threads["compute"] == engine.threads["decode"]

    async def test_nothing_is_taken_before_a_lane_is_free(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running, bulk = await self.at_work(engine, [f"bulk {i}" for i in range(5)])
        call = work("caller", "call", interactive=True)
        running.put(call)
        hold.set()
        await asyncio.gather(*(item.future for item in (*bulk, call)))
        await running.stop()
        assert engine.prepared[:2] == ["bulk 0", "call"]

    async def test_a_lane_goes_on_with_the_next_batch_without_asking_the_loop(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running, items = await self.at_work(engine, [str(i) for i in range(4)])
        assert engine.prepared == ["0"]
        hold.set()
        time.sleep(0.2)  # noqa: ASYNC251  the loop does nothing meanwhile
        assert engine.prepared == ["0", "1"]
        await asyncio.wait_for(asyncio.gather(*(item.future for item in items)), 10)
        await running.stop()
        assert engine.prepared == ["0", "1", "2", "3"]

    async def test_what_was_taken_ahead_is_answered_when_the_model_stops(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running, items = await self.at_work(engine, [str(i) for i in range(3)])
        stopping = asyncio.create_task(running.stop())
        await asyncio.sleep(0)
        hold.set()
        await asyncio.wait_for(stopping, 10)
        assert [item.future.exception() is None for item in items] == [True, True, False]
        assert running.guard.is_quiet

    @pytest.mark.parametrize("step", ["prepare", "compute", "decode"])
    async def test_an_item_that_breaks_a_step_fails_alone(self, step: str) -> None:
        running = batcher(CountingEngine(poison={"bad": step}), pipelined=False)
        items = [work("a", name) for name in ("good", "bad", "fine")]
        for item in items:
            running.put(item)
        results = await asyncio.wait_for(asyncio.gather(*(item.future for item in items)), 10)
        await asyncio.wait_for(running.stop(), 5)
        reasons = [result.words[0].reason for result in results]
        assert reasons == [None, MissingReason.ENGINE_FAILED, None]

    async def test_a_fault_of_ours_costs_nobody_a_hang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        running = batcher(CountingEngine(), pipelined=False)
        monkeypatch.setattr(running, "_prepare", lambda *_: 1 / 0)
        item = work()
        running.put(item)
        assert (await asyncio.wait_for(item.future, 5)).words[0].reason is MissingReason.ENGINE_FAILED
        await asyncio.wait_for(running.stop(), 5)


class TestPriority:
    async def test_interactive_work_goes_ahead_of_all_bulk_work_that_waits(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine, batch_ms=2000)
        items = [work("bulk", f"bulk {i}") for i in range(20)]
        call = work("caller", "call", interactive=True)
        for item in (*items, call):
            running.put(item)
        await until(lambda: "call" in engine.prepared)
        hold.set()
        await asyncio.gather(*(item.future for item in (*items, call)))
        await running.stop()
        assert ["call"] in engine.batches[:2]

    async def test_bulk_work_is_not_starved_by_interactive_work(self) -> None:
        engine = CountingEngine(seconds=0.002)
        running = batcher(engine, batch_ms=1000)
        bulk = [work("bulk", f"bulk {i}") for i in range(10)]
        calls = [work(f"caller {i % 3}", f"call {i}", interactive=True) for i in range(100)]
        for item in (*bulk, *calls):
            running.put(item)
        await asyncio.wait_for(asyncio.gather(*(item.future for item in (*bulk, *calls))), 10)
        await running.stop()
        order = [name.split()[0] for batch in engine.batches for name in batch]
        assert order[:60].count("bulk") >= 10

    async def test_long_items_leave_a_lane_to_short_ones(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = batcher(engine, 2, batch_ms=16_000)
        short = work("a", "short", 1000)
        running.put(short)
        long = [work("b", f"long {i}", 100_000) for i in range(6)]
        for item in long:
            running.put(item)
        await asyncio.sleep(0.05)
        late = work("a", "late", 1000)
        running.put(late)
        await asyncio.sleep(0.05)
        assert sum(name.startswith("long") for name in engine.prepared) == 1
        assert "late" in engine.prepared
        hold.set()
        await asyncio.gather(*(item.future for item in (*long, short, late)))
        await running.stop()


class TestFailures:
    @pytest.mark.parametrize("step", ["prepare", "compute", "decode"])
    async def test_an_item_that_breaks_a_step_fails_alone(self, step: str) -> None:
        items = [work("a", name) for name in ("good", "bad", "fine", "well")]
        results = await run(CountingEngine(poison={"bad": step}), items)
        reasons = [result.words[0].reason for result in results]
        assert reasons == [None, MissingReason.ENGINE_FAILED, None, None]
        assert "error " in results[1].words[0].detail

    async def test_an_engine_that_answers_too_little_costs_nobody_a_hang(self) -> None:
        class Forgetful(CountingEngine):
            def compute(self, batch: object) -> list[object]:  # noqa: ARG002  the interface has it
                return []

        results = await run(Forgetful(), [work("a", str(i)) for i in range(3)])
        assert {result.words[0].reason for result in results} == {MissingReason.ENGINE_FAILED}

    async def test_a_fault_outside_every_step_costs_the_batch_an_answer_and_nobody_a_hang(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = CountingEngine()
        running = batcher(engine)
        monkeypatch.setattr(Steps, "compute", lambda *_: 1 / 0)
        first = work()
        running.put(first)
        assert (await first.future).words[0].reason is MissingReason.ENGINE_FAILED
        monkeypatch.undo()
        second = work()
        running.put(second)
        assert (await second.future).words[0].reason is None
        await asyncio.wait_for(running.stop(), 5)


class TestMemory:
    async def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold, fits_ms=60_000, pads=True)
        guard = MemoryGuard(4 * GB, FixedMemory())
        running = await blocked(hold, engine, guard=guard, batch_ms=120_000)
        items = [work("a", str(i), 20_000) for i in range(6)]
        for item in items:
            running.put(item)
        hold.set()
        results = await asyncio.gather(*(item.future for item in items))
        assert all(result.words[0].reason is None for result in results)
        assert [len(batch) for batch in engine.batches if "blocker" not in batch[0]] == [6, 3, 3]
        assert guard.room_ms(running.share) == 60_000
        await running.stop()

    async def test_an_item_that_never_fits_fails_alone_and_says_why(self) -> None:
        results = await run(CountingEngine(fits_ms=30_000), [work("a", "huge", 50_000), work("a", "fine", 20_000)])
        assert [result.words[0].reason for result in results] == [MissingReason.ENGINE_FAILED, None]
        assert "out of memory" in results[0].words[0].detail

    async def test_batches_that_run_at_once_stay_within_the_limit(self) -> None:
        class Watching(CountingEngine):
            running = most = 0
            lock = threading.Lock()

            def compute(self, batch: list[object]) -> list[object]:  # type: ignore[override]
                with self.lock:
                    self.running += len(batch)
                    self.most = max(self.most, self.running)
                time.sleep(0.005)
                with self.lock:
                    self.running -= len(batch)
                return super().compute(batch)  # type: ignore[arg-type]

        engine = Watching()
        # 10 000 bytes for each ms: 1 s takes 10 MB, and the limit leaves three quarters of 40 MB.
        running = batcher(engine, 4, batch_ms=2000, guard=MemoryGuard(40_000_000, FixedMemory()))
        running.share.facts.bytes_per_ms = 10_000.0
        items = [work("a", str(i)) for i in range(40)]
        for item in items:
            running.put(item)
        await asyncio.wait_for(asyncio.gather(*(item.future for item in items)), 10)
        await running.stop()
        assert engine.most <= 3

    async def test_a_segment_that_could_never_be_computed_is_refused_with_figures(self) -> None:
        running = batcher(CountingEngine(), guard=MemoryGuard(100_000_000, FixedMemory()))
        running.share.facts.bytes_per_ms = 10_000.0
        with pytest.raises(Invalid, match=r"about 191 MB.*leaves 72 MB.*--memory-limit"):
            running.put(work("a", "long", 20_000))
        await running.stop()

    async def test_what_was_seen_in_a_crowd_refuses_nothing(self) -> None:
        running = batcher(CountingEngine(), guard=MemoryGuard(100_000_000, FixedMemory()))
        running.share.facts.alone_bytes_per_ms = 100.0
        running.share.facts.bytes_per_ms = 10_000.0
        long = work("a", "long", 20_000)
        running.put(long)
        await asyncio.wait_for(long.future, 10)
        await running.stop()

    def test_running_out_is_told_from_other_errors(self) -> None:
        import torch

        assert is_out_of_memory(MemoryError())
        assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**50)
        assert is_out_of_memory(caught.value)
        assert not is_out_of_memory(RuntimeError("shapes do not match"))
        assert not is_out_of_memory(None)


class TestDeadlines:
    async def test_what_nobody_waits_for_is_not_computed(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine)
        gone, kept = work("a", "gone"), work("a", "kept")
        running.put(gone)
        running.put(kept)
        gone.future.cancel()
        hold.set()
        await kept.future
        await running.stop()
        assert not any("gone" in batch for batch in engine.batches)

    async def test_what_was_prepared_is_not_computed_either_once_nobody_waits(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = batcher(engine)
        first, gone = work("a", "first"), work("a", "gone")
        running.put(first)
        await until(lambda: "first" in engine.prepared)
        running.put(gone)
        await until(lambda: "gone" in engine.prepared)
        gone.future.cancel()
        hold.set()
        await first.future
        await running.stop()
        assert engine.batches == [["first"]]

    async def test_a_deadline_that_passes_in_the_queue_is_answered_as_such(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine)
        late = work("a", "late", deadline=time.monotonic() + 0.02)
        running.put(late)
        await asyncio.sleep(0.05)
        hold.set()
        with pytest.raises(DeadlineTooSoon):
            await asyncio.wait_for(late.future, 5)
        await running.stop()
        assert not any("late" in batch for batch in engine.batches)

    async def test_the_wait_is_guessed_from_what_runs_and_what_is_ahead(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine)
        running.throughput.rate = 10.0
        assert running.seconds_until_done(1000) == pytest.approx(6.1, abs=0.5)  # 60 s on the lane, then its own
        running.put(work("caller", "ahead", 20_000, interactive=True))
        running.put(work("caller", "ahead too", 20_000, interactive=True))
        await asyncio.sleep(0.02)
        assert running.seconds_until_done(1000) == pytest.approx(10.1, abs=0.5)
        hold.set()
        await running.stop()

    async def test_an_idle_model_needs_only_the_time_of_the_segment(self) -> None:
        running = batcher(CountingEngine(), 2, rate=100.0)
        assert running.seconds_until_done(10_000) == pytest.approx(0.2)
        await running.stop()


class TestStop:
    async def test_what_waits_is_refused_and_what_runs_is_answered(self) -> None:
        hold = threading.Event()
        engine = CountingEngine(hold=hold)
        running = await blocked(hold, engine)
        waiting = work("a", "waiting")
        running.put(waiting)
        stopping = asyncio.create_task(running.stop())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await waiting.future
        with pytest.raises(Unavailable):
            running.put(work())
        hold.set()
        await asyncio.wait_for(stopping, 5)
        assert engine.batches == [["blocker 0"], ["blocker 1"]]
