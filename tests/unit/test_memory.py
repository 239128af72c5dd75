"""The guard knows its limits, learns what batches take, and keeps what it learnt across restarts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from align_server.scheduling import memory as module
from align_server.scheduling import tuning
from align_server.scheduling.learnt import Facts, Learnt
from align_server.scheduling.memory import MemoryGuard, ProcessMemory, allocated, default_limit
from counting import CountingEngine, FixedMemory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from align_server.engines.engine import Segment
    from align_server.scheduling.memory import Share

MB = 2**20


def guard(limit_mb: int = 1000, used_mb: int = 200) -> tuple[MemoryGuard, FixedMemory]:
    memory = FixedMemory(used_mb * MB)
    return MemoryGuard(limit_mb * MB, memory), memory


def observe(
    guard: MemoryGuard, share: Share, memory: FixedMemory, cost_ms: int, peak_mb: int, held_ms: int = 0
) -> None:
    guard.take(share, cost_ms)
    memory.most = peak_mb * MB
    guard.give_back(share, cost_ms)
    guard.look(held_ms)


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OBSERVE_S", -1.0)


class TestGuard:
    def test_room_is_what_the_limit_leaves_beside_models_and_queue(self) -> None:
        account, _ = guard(limit_mb=1000, used_mb=200)
        share = account.open(Facts(bytes_per_ms=MB))
        assert account.room_ms(share) == 600  # three quarters of 800 MB
        account.take(share, 500)
        assert account.room_ms(share) == 100
        assert account.queue_ms == pytest.approx(200 * MB / 96, rel=0.01)

    def test_models_share_one_budget(self) -> None:
        account, _ = guard()
        first, second = account.open(Facts(bytes_per_ms=MB)), account.open(Facts(bytes_per_ms=2 * MB))
        account.take(first, 400)
        assert account.room_ms(second) == 100

    def test_a_peak_is_learnt_at_once_and_forgotten_slowly(self) -> None:
        account, memory = guard()
        share = account.open(Facts(bytes_per_ms=1000.0))
        observe(account, share, memory, 1000, peak_mb=300)
        assert share.bytes_per_ms == pytest.approx(100 * MB / 1000)
        observe(account, share, memory, 1000, peak_mb=210)
        assert 90 * MB / 1000 < share.bytes_per_ms < 100 * MB / 1000

    def test_queued_audio_does_not_count_as_what_a_batch_took(self) -> None:
        account, memory = guard()
        share = account.open(Facts(bytes_per_ms=1000.0))
        held_ms = 100 * MB // module.BYTES_PER_QUEUED_MS
        observe(account, share, memory, 1000, peak_mb=400, held_ms=held_ms)
        assert share.bytes_per_ms == pytest.approx(100 * MB / 1000, rel=0.01)

    def test_small_batches_do_not_pay_for_what_the_allocator_keeps_of_large_ones(self) -> None:
        account, memory = guard()
        share = account.open(Facts(bytes_per_ms=1000.0))
        observe(account, share, memory, 100_000, peak_mb=300)
        learnt = share.bytes_per_ms
        observe(account, share, memory, 1000, peak_mb=300)
        assert share.bytes_per_ms == learnt

    def test_running_out_halves_batches_and_going_well_widens_them_again(self) -> None:
        account, _ = guard()
        share = account.open(Facts(bytes_per_ms=1.0))
        account.ran_out(share, 10_000)
        assert account.room_ms(share) == 5000
        account.ran_out(share, 20_000)
        assert account.room_ms(share) == 5000
        for _ in range(module.RECOVERY_BATCHES):
            account.take(share, 100)
            account.give_back(share, 100)
        assert account.room_ms(share) == 5500

    def test_what_the_allocator_keeps_is_given_back_where_it_gets_tight(self) -> None:
        for used_mb, trims in ((890, 0), (910, 1)):
            account, memory = guard(limit_mb=1000, used_mb=used_mb)
            account.relieve()
            assert memory.trims == trims

    def test_an_unloaded_model_gives_its_memory_back_to_the_budget(self) -> None:
        account, memory = guard()
        share = account.open(Facts())
        memory.now = 700 * MB
        account.settle()
        assert account.spare_bytes == 300 * MB
        memory.now = 200 * MB
        account.close(share)
        assert account.spare_bytes == 800 * MB
        assert memory.trims


class TestLimits:
    def test_the_default_is_below_what_the_machine_has(self) -> None:
        assert 0 < default_limit() <= 0.75 * psutil.virtual_memory().total

    def test_the_limit_of_a_control_group_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = tmp_path / "user" / "job"
        group.mkdir(parents=True)
        (tmp_path / "user" / "memory.max").write_text("2000000000\n")
        (group / "memory.max").write_text("max\n")
        (tmp_path / "cgroup").write_text("0::/user/job\n")
        monkeypatch.setattr(module, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(module, "CGROUP_ROOTS", {"": (tmp_path, "memory.max"), "memory": (tmp_path / "v1", "x")})
        assert default_limit() == 1_500_000_000


class TestProcess:
    def test_the_peak_of_a_passing_allocation_is_seen_and_reset(self) -> None:
        # In a process of its own: other threads of this one allocate too.
        code = (
            "import numpy as np, json\n"
            "from align_server.scheduling.memory import ProcessMemory\n"
            "memory = ProcessMemory(); memory.reset_peak(); before = memory.used()\n"
            "np.ones(40 * 2**20, np.uint8).sum(); first = memory.peak() - before\n"
            "memory.trim(); memory.reset_peak(); second = memory.peak() - before\n"
            "print(json.dumps([first, second]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        first, second = json.loads(done.stdout)
        assert first > 35 * MB
        assert second < 10 * MB

    def test_used_is_what_the_system_says(self) -> None:
        assert ProcessMemory().used() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


class TestLearnt:
    def test_facts_are_kept_across_restarts(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "learnt.json"
        first = Learnt(path)
        facts = first.facts("model 1 cpu")
        facts.batch_ms, facts.rate, facts.failed_ms = 16_000, 321.5, 9
        first.save()
        assert Learnt(path).facts("model 1 cpu") == facts
        assert Learnt(path).facts("model 2 cpu") == Facts()
        assert [entry.name for entry in path.parent.iterdir()] == ["learnt.json"]

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "models": {"a": {"rate": "x"}}}']
    )
    def test_a_broken_file_costs_a_new_measurement_and_nothing_else(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "learnt.json"
        path.write_text(text)
        learnt = Learnt(path)
        assert learnt.facts("a") == Facts()
        learnt.save()
        assert json.loads(path.read_text())["models"] == {"a": vars_of(Facts())}

    def test_a_file_of_another_version_is_not_used(self, tmp_path: Path) -> None:
        path = tmp_path / "learnt.json"
        path.write_text('{"version": 0, "models": {"a": {"batch_ms": 5}}}')
        assert Learnt(path).facts("a").batch_ms == 0

    def test_a_folder_that_cannot_be_written_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        learnt = Learnt(tmp_path / "file" / "learnt.json")
        learnt.facts("a").batch_ms = 1
        learnt.save()


def vars_of(facts: Facts) -> dict[str, float]:
    return {name: getattr(facts, name) for name in Facts.__slots__}


class TestMeasuring:
    class Timed(CountingEngine):
        """Takes as long as it is told to, by a clock of its own, and as much memory for each segment."""

        def __init__(self, fixed_s: float, each_s: float, memory: FixedMemory, *, pads: bool) -> None:
            super().__init__(pads=pads)
            self.now = 0.0
            self._fixed_s, self._each_s, self._memory = fixed_s, each_s, memory

        def perf_counter(self) -> float:
            return self.now

        def compute(self, batch: Sequence[Segment]) -> list[object]:
            self.now += self._fixed_s + len(batch) * self._each_s
            self._memory.most = self._memory.now + len(batch) * 20 * MB
            return list(batch)

    def measured(
        self, monkeypatch: pytest.MonkeyPatch, *, fixed_s: float, each_s: float, lanes: int = 1, pads: bool = True
    ) -> Facts:
        memory, facts = FixedMemory(100 * MB), Facts()
        engine = self.Timed(fixed_s, each_s, memory, pads=pads)
        monkeypatch.setattr(tuning, "time", engine)
        tuning.measure(engine, facts, lanes, memory)
        return facts

    def test_an_engine_that_gains_nothing_from_batches_gets_small_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = self.measured(monkeypatch, fixed_s=0.0, each_s=0.1, lanes=2)
        assert facts.batch_ms == 4000
        assert facts.rate == pytest.approx(2 * 4 / 0.1, rel=0.02)

    def test_an_engine_with_a_price_for_each_batch_gets_large_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.measured(monkeypatch, fixed_s=0.02, each_s=0.0005).batch_ms >= 128_000

    def test_an_engine_that_computes_one_by_one_is_timed_with_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        quick = self.measured(monkeypatch, fixed_s=0.0, each_s=0.008, pads=False)
        assert quick.batch_ms == 16_000  # so that what a batch costs beside its segments is little of it
        again = self.measured(monkeypatch, fixed_s=0.008, each_s=0.0, pads=False)
        assert again.batch_ms == 16_000  # a batch of several was not asked

    def test_the_memory_of_a_batch_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = self.measured(monkeypatch, fixed_s=0.01, each_s=0.01)
        assert facts.bytes_per_ms == pytest.approx(20 * MB / 4000)

    def test_what_is_known_is_not_measured_again(self) -> None:
        engine = CountingEngine()
        facts = Facts(batch_ms=7000, rate=5.0, bytes_per_ms=1.0)
        tuning.measure(engine, facts, 1, FixedMemory())
        assert engine.batches == []
        assert facts.batch_ms == 7000


def test_what_is_allocated_grows_and_shrinks_with_what_is_kept() -> None:
    before = allocated()
    if not before:
        pytest.skip("the C library does not say what is in use")
    kept = bytearray(50 * 2**20)
    assert allocated() - before >= len(kept)
    del kept
    assert allocated() - before < 2**20


def test_what_grows_beside_a_small_batch_is_not_taken_for_its_own() -> None:
    held, memory = guard(limit_mb=1000, used_mb=200)
    share = held.open(Facts(batch_ms=32_000, rate=500.0, bytes_per_ms=200.0))
    observe(held, share, memory, cost_ms=1_000, peak_mb=500)  # messages that were refused, say
    assert share.facts.bytes_per_ms == 200.0
    held.check(share, 110_000)
