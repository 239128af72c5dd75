"""Replicas of a real model, here on the CPU, share the work, answer as one engine does, and are loaded all or none."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
import torch

from align_server.engines import device, registry
from align_server.engines.ctc.engine import CtcEngine
from align_server.engines.engine import EngineLoadError, Result, Segment, Word
from align_server.engines.replicas import Replicas
from align_server.metrics import Metrics
from align_server.scheduling.batcher import Batcher
from align_server.scheduling.learnt import Facts
from align_server.scheduling.memory import MemoryGuard, is_out_of_memory
from align_server.scheduling.pools import Pools
from align_server.scheduling.tuning import measure
from align_server.scheduling.work import Work
from counting import GB, CountingEngine, FixedMemory
from counting import segment as silence
from support import PROJECT
from toy.tones import some_words, utterance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TOY: Final = PROJECT / "tests" / "toy" / "checkpoint"
NAME: Final = f"ctc:{TOY}"
WAIT_S: Final = 20


class Watched(CtcEngine):
    """Counts its batches; where there is a barrier, a batch waits until as many are computed as pass it."""

    barrier: threading.Barrier | None = None
    batches = 0

    def compute(self, batch: Sequence[Any]) -> list[Any]:
        self.batches += 1  # a replica of these tests has a batch at a time
        if self.barrier:
            self.barrier.wait(WAIT_S)
        return super().compute(batch)


def toy(precision: str = "fp32", folder: Path = TOY) -> Watched:
    return Watched(NAME, folder, "cpu", precision)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the server's lanes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone() -> CtcEngine:
    """One engine by itself."""
    engine = toy()
    engine.load()
    return engine


@pytest.fixture
def engines() -> list[Watched]:
    return [toy(), toy()]


@pytest.fixture
def replicas(engines: list[Watched]) -> Replicas:
    loaded = Replicas(engines)
    loaded.load()
    return loaded


@pytest.fixture(scope="module")
def said() -> list[Segment]:
    """Utterances of the toy language, of 0.5 to 6 s."""
    made = [utterance(seed, some_words(seed, 1 + seed % 7)) for seed in range(2_000_000_000, 2_000_000_024)]
    return [Segment(str(i), one.pcm, tuple(map(Word, one.words))) for i, one in enumerate(made)]


def test_to_the_server_they_are_one_engine(replicas: Replicas, alone: CtcEngine) -> None:
    for what in ("name", "languages", "frame_ms", "max_segment_s", "revision", "device", "precision", "pads", "phones"):
        assert getattr(replicas, what) == getattr(alone, what)
    assert (replicas.transcribes, replicas.scanning) == (alone.transcribes, alone.scanning)
    assert replicas.symbols(Word("ab")) == alone.symbols(Word("ab"))
    assert replicas.cost(5000) == alone.cost(5000)
    assert [word.text for word in replicas.probe(1000).words] == [word.text for word in alone.probe(1000).words]
    assert (replicas.replicas, alone.replicas) == (2, 1)
    assert replicas.size_bytes == 2 * alone.size_bytes  # it is read twice


def test_gpus_with_numbers_are_one_kind_of_device() -> None:
    assert Replicas([CtcEngine("x", TOY, f"cuda:{i}", "fp32") for i in (0, 1)]).device == "cuda"


def test_two_batches_at_once_are_on_two_replicas(
    replicas: Replicas, engines: list[Watched], said: list[Segment]
) -> None:
    Watched.barrier = threading.Barrier(2)
    try:
        with ThreadPoolExecutor(2) as lanes:
            list(lanes.map(lambda one: replicas.align([one]), said[:6]))
    finally:
        Watched.barrier = None
    assert [engine.batches for engine in engines] == [3, 3]


def test_it_makes_no_difference_to_the_bit_which_of_them_computes(
    replicas: Replicas, engines: list[Watched], alone: CtcEngine, said: list[Segment]
) -> None:
    expected = alone.align(said)
    prepared: list[Any] = [replicas.prepare(one) for one in said]
    emissions = [alone.compute([one])[0].emissions for one in prepared]
    for engine in engines:
        assert engine.align(said) == expected
        found = [scored.emissions for scored in engine.compute(prepared)]
        assert all(map(np.array_equal, found, emissions))
    with ThreadPoolExecutor(8) as lanes:
        assert list(lanes.map(lambda _: replicas.align(said), range(8))) == [expected] * 8
    assert replicas._batches == [0, 0]


async def test_a_batcher_with_a_lane_for_each_uses_both(
    replicas: Replicas, engines: list[Watched], alone: CtcEngine, said: list[Segment]
) -> None:
    pools = Pools.of(1, 1)
    lanes = 2 * replicas.replicas
    facts = Facts(batch_ms=4000, rate=100.0, bytes_per_ms=100.0)
    guard = MemoryGuard(4 * GB, FixedMemory())
    running = Batcher(replicas, lanes, pools=pools, guard=guard, facts=facts, metrics=Metrics(), pipelined=True)
    try:
        works = [Work(one, f"client {i % 3}", replicas.cost(one.duration_ms)) for i, one in enumerate(said)]
        for work in works:
            running.put(work)
        found = await asyncio.wait_for(asyncio.gather(*(work.future for work in works)), WAIT_S)
    finally:
        await running.stop()
        pools.shutdown()
    assert found == alone.align(said)
    assert all(engine.batches for engine in engines)


def test_all_are_warmed_up_and_measured_as_one(replicas: Replicas, engines: list[Watched]) -> None:
    replicas.warm_up()
    assert [engine.batches for engine in engines] == [1, 1]
    facts = Facts()
    measure(replicas, facts, 2, FixedMemory())
    assert facts.batch_ms > 0


def test_loading_goes_from_nothing_to_all_once(engines: list[Watched]) -> None:
    seen: list[tuple[float, str]] = []
    Replicas(engines).load(lambda share, what: seen.append((share, what)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert (0 <= shares[0] < 0.5, shares[-1]) == (True, 1.0)
    assert [share for share, what in seen if what == "loaded"] == [0.5, 1.0]


def test_where_one_cannot_be_loaded_none_stays(tmp_path: Path, said: list[Segment]) -> None:
    broken = shutil.copytree(TOY, tmp_path / "broken")
    engines = [toy(), toy(folder=broken), toy()]
    (broken / "model.safetensors").write_bytes(b"")
    together = Replicas(engines)
    with pytest.raises(EngineLoadError, match=str(broken)):
        together.load()
    assert [engine._model for engine in engines] == [None] * 3
    with pytest.raises(RuntimeError, match="called before load"):
        together.align(said[:1])


def test_replicas_that_would_not_give_the_same_times_are_refused() -> None:
    engines = [toy("fp32"), toy("bf16")]
    with pytest.raises(EngineLoadError, match=r"not alike: fp32 on cpu, bf16 on cpu; start with --precision fp32, or"):
        Replicas(engines).load()
    assert [engine._model for engine in engines] == [None, None]


def test_unloaded_replicas_can_be_loaded_again(
    replicas: Replicas, engines: list[Watched], alone: CtcEngine, said: list[Segment]
) -> None:
    replicas.unload()
    assert [engine._model for engine in engines] == [None, None]
    replicas.load()
    assert replicas.align(said[:2]) == alone.align(said[:2])


def test_what_a_replica_raises_comes_through_and_leaves_it_free() -> None:
    engines = [CountingEngine(fits_ms=1000), CountingEngine(poison={"s": "compute"})]
    together = Replicas(engines)
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        together.compute([silence("a", 2000)])
    assert is_out_of_memory(caught.value)
    with together._least_busy(), pytest.raises(ValueError, match="poisoned"):  # the first is busy
        together.compute([silence()])
    assert [len(engine.batches) for engine in engines] == [1, 1]
    assert together._batches == [0, 0]
    assert isinstance(together.align([silence()])[0], Result)


def test_several_gpus_get_a_replica_each(monkeypatch: pytest.MonkeyPatch, alone: CtcEngine) -> None:
    monkeypatch.setattr(device, "found", lambda name: ["cpu", "cpu", "cpu"] if name == "cuda" else [])
    for asked in ("cuda", "auto"):
        made = registry.create(NAME, asked, "fp32")
        assert isinstance(made, Replicas)
        assert (made.replicas, made.revision) == (3, alone.revision)
