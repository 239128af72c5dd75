"""Models are loaded once, held while they are used, and unloaded for want of use or of memory."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from align_server.engines.engine import EngineLoadError
from align_server.engines.registry import ModelDescription
from align_server.metrics import Metrics
from align_server.scheduling import residents as module
from align_server.scheduling.learnt import Learnt
from align_server.scheduling.memory import MemoryGuard
from align_server.scheduling.pools import Pools
from align_server.scheduling.residents import ModelState, Residents
from align_server.scheduling.work import ModelUnavailable, UnknownModel
from counting import CountingEngine, FixedMemory, work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from align_server.engines.engine import Progress

MB = 2**20


class Sized(CountingEngine):
    """An engine whose weights take memory while they are loaded."""

    size_bytes = 100 * MB

    def __init__(self, name: str, memory: FixedMemory, log: list[str], *, broken: bool = False) -> None:
        super().__init__()
        self.name = name
        self.revision = name
        self.gate = threading.Event()
        self.gate.set()
        self._memory, self._log, self._broken = memory, log, broken

    def load(self, progress: Progress = lambda _share, _what: None) -> None:
        progress(0.4, "reading weights")
        self.gate.wait(10)
        if self._broken:
            raise EngineLoadError(f"{self.name} is truncated")
        self._memory.now += self.size_bytes
        self._log.append(f"load {self.name}")

    def unload(self) -> None:
        if f"load {self.name}" in self._log:
            self._memory.now -= self.size_bytes
        self._log.append(f"unload {self.name}")


class House:
    """Residents with everything around them. Models with capital letters are downloaded, once `gate` is open."""

    def __init__(self, names: str, *, limit_mb: int = 10_000, idle_s: float = 0.0, broken: str = "") -> None:
        self.gate = threading.Event()
        self.lost = ""  # models that cannot be downloaded
        self.log: list[str] = []
        self.states: list[tuple[str, ModelState]] = []
        self.memory = FixedMemory()
        self.engines = {name: Sized(name, self.memory, self.log, broken=name in broken) for name in names}
        self.pools = Pools.of(1, 1)
        guard = MemoryGuard(limit_mb * MB, self.memory)
        self.residents = Residents(
            [ModelDescription(name, ("eng",), "", 1, remote=name.isupper()) for name in names],
            make=self.engines.__getitem__,
            fetch=self._fetch,
            lanes=lambda _: 1,
            guard=lambda _: guard,
            learnt=Learnt(None),
            pools=self.pools,
            metrics=Metrics(),
            on_state=lambda name, state: self.states.append((name, state)),
            idle_s=idle_s,
        )

    def _fetch(self, name: str, progress: Progress) -> ModelDescription:
        assert name.isupper()
        progress(0.25, "downloading")
        while not self.gate.wait(0.01):
            progress(0.5, "downloading")
        if name in self.lost:
            raise EngineLoadError(f"{name} is lost")
        self.log.append(f"fetch {name}")
        return ModelDescription(name, ("deu",), "MIT", 2, remote=True)

    def state(self, name: str) -> tuple[ModelState, str]:
        row = next(row for row in self.residents.status() if row.description.name == name)
        return row.state, row.detail

    async def use(self, name: str) -> None:
        async with self.residents.lease(name) as batcher:
            item = work()
            batcher.put(item)
            await item.future


@pytest.fixture
async def houses() -> AsyncIterator[list[House]]:
    built: list[House] = []
    yield built
    for house in built:
        await house.residents.stop()
        house.pools.shutdown()


async def test_the_first_name_is_the_default_and_unknown_names_are_told(houses: list[House]) -> None:
    houses.append(house := House("ab"))
    await house.residents.load_all()
    async with house.residents.lease("") as batcher:
        assert batcher.engine.name == "a"
    with pytest.raises(UnknownModel, match="served are a, b"):
        async with house.residents.lease("c"):
            pass


async def test_requests_at_once_for_a_model_that_is_not_loaded_load_it_once(houses: list[House]) -> None:
    houses.append(house := House("a"))
    house.engines["a"].gate.clear()
    waiting = [asyncio.create_task(house.use("a")) for _ in range(20)]
    await asyncio.sleep(0.05)
    assert house.state("a") == (ModelState.LOADING, "reading weights, 40%")
    house.engines["a"].gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert house.log == ["load a"]


async def test_a_model_that_fails_leaves_the_others_serving(houses: list[House]) -> None:
    houses.append(house := House("ab", broken="a"))
    await house.residents.load_all()
    assert house.state("a") == (ModelState.FAILED, "a is truncated")
    with pytest.raises(ModelUnavailable, match="truncated"):
        await house.use("a")
    await house.use("b")


async def test_a_server_none_of_whose_models_load_says_so(houses: list[House]) -> None:
    houses.append(house := House("ab", broken="ab"))
    with pytest.raises(EngineLoadError, match="a is truncated; b is truncated"):
        await house.residents.load_all()


async def test_a_failed_model_is_tried_again_when_told_to_or_after_a_while(
    houses: list[House], monkeypatch: pytest.MonkeyPatch
) -> None:
    houses.append(house := House("a", broken="a"))
    with pytest.raises(ModelUnavailable):
        await house.use("a")
    house.engines["a"]._broken = False
    with pytest.raises(ModelUnavailable, match="failed to load"):
        await house.use("a")
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    await house.use("a")


async def test_a_model_in_use_is_not_unloaded(houses: list[House]) -> None:
    houses.append(house := House("a", idle_s=0.001))
    async with house.residents.lease("a"):
        await asyncio.sleep(0.01)
        await house.residents.refresh()
        with pytest.raises(ModelUnavailable, match="in use by"):
            await house.residents.unload("a")
        assert house.log == ["load a"]
    await asyncio.sleep(0.01)
    await house.residents.refresh()
    assert house.log == ["load a", "unload a"]
    assert house.state("a")[0] is ModelState.AVAILABLE
    await house.use("a")
    assert house.log[-1] == "load a"
    assert house.residents.segments_done == 1


async def test_a_request_that_comes_while_a_model_is_unloaded_has_it_loaded_again(houses: list[House]) -> None:
    houses.append(house := House("a"))
    await house.use("a")
    unloading = asyncio.create_task(house.residents.unload("a"))
    await asyncio.sleep(0)
    await asyncio.wait_for(house.use("a"), 10)
    await unloading
    assert house.log == ["load a", "unload a", "load a"]


async def test_the_model_unused_for_longest_makes_room(houses: list[House]) -> None:
    houses.append(house := House("abc", limit_mb=250))
    for name in "abab":
        await house.use(name)
        await asyncio.sleep(0.002)
    await house.use("a")
    await house.use("c")
    assert house.log == ["load a", "load b", "unload b", "load c"]
    assert house.memory.now <= 250 * MB


async def test_a_model_for_which_there_is_no_room_is_refused_with_figures(houses: list[House]) -> None:
    houses.append(house := House("ab", limit_mb=150))
    async with house.residents.lease("a"):
        with pytest.raises(ModelUnavailable, match=r"about 150 MB; 100 MB of the limit of 150 MB are in use"):
            await house.use("b")
    await house.use("b")
    assert house.log == ["load a", "unload a", "load b"]


async def test_memory_kept_for_nothing_is_given_back_once_it_is_quiet(
    houses: list[House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIDY_S", 0.0)
    houses.append(house := House("a"))
    await house.use("a")
    async with house.residents.lease("a") as batcher:
        item = work()
        batcher.put(item)
        await house.residents.refresh()
        await item.future
    trims = house.memory.trims
    await asyncio.sleep(0.01)
    for _ in range(3):
        await house.residents.refresh()
    assert house.memory.trims == trims + 1


async def test_cancelling_who_waits_for_a_load_leaves_the_model_loadable(houses: list[House]) -> None:
    houses.append(house := House("a"))
    house.engines["a"].gate.clear()
    waiting = asyncio.create_task(house.use("a"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    house.engines["a"].gate.set()
    await asyncio.wait_for(house.use("a"), 10)
    assert house.log == ["load a"]


class TestDownloads:
    async def test_a_model_that_is_downloaded_holds_up_none_of_the_others(self, houses: list[House]) -> None:
        houses.append(house := House("Aab"))
        everything = asyncio.create_task(house.residents.load_all())
        await asyncio.wait_for(house.use("a"), 10)
        await asyncio.wait_for(house.use("b"), 10)
        assert house.state("A") == (ModelState.LOADING, "downloading, 50%")
        assert not everything.done()
        house.gate.set()
        await asyncio.wait_for(everything, 10)
        assert house.log == ["load a", "load b", "fetch A", "load A"]
        described = house.residents.status()[0].description
        assert (described.languages, described.licence, described.size_bytes) == (("deu",), "MIT", 2)

    async def test_requests_at_once_wait_for_one_download(self, houses: list[House]) -> None:
        houses.append(house := House("A"))
        waiting = [asyncio.create_task(house.use("A")) for _ in range(20)]
        await asyncio.sleep(0.05)
        house.gate.set()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert house.log == ["fetch A", "load A"]

    async def test_a_download_that_fails_leaves_the_others_serving_and_is_tried_again_when_told_to(
        self, houses: list[House]
    ) -> None:
        houses.append(house := House("Aa"))
        house.lost = "A"
        house.gate.set()
        await house.residents.load_all()
        assert house.state("A") == (ModelState.FAILED, "A is lost")
        await house.use("a")
        house.lost = ""
        await house.residents.load("A")
        await house.use("A")

    async def test_unloading_ends_a_download(self, houses: list[House]) -> None:
        houses.append(house := House("Aa"))
        everything = asyncio.create_task(house.residents.load_all())
        await house.use("a")
        await asyncio.wait_for(house.residents.unload("A"), 1)
        await asyncio.wait_for(everything, 1)
        assert house.state("A")[0] is ModelState.AVAILABLE
        assert "was stopped" in house.state("A")[1]
        await asyncio.sleep(0.1)
        house.gate.set()
        await house.use("A")
        assert house.log.count("fetch A") == 1

    async def test_a_download_that_somebody_waits_for_is_not_ended(self, houses: list[House]) -> None:
        houses.append(house := House("A"))
        waiting = asyncio.create_task(house.use("A"))
        await asyncio.sleep(0.05)
        with pytest.raises(ModelUnavailable, match="in use by a call or stream"):
            await house.residents.unload("A")
        house.gate.set()
        await asyncio.wait_for(waiting, 10)

    async def test_stopping_waits_for_no_download_and_loads_nothing_more(self, houses: list[House]) -> None:
        houses.append(house := House("ABab"))
        house.engines["a"].gate.clear()
        everything = asyncio.create_task(house.residents.load_all())
        waiting = asyncio.create_task(house.use("A"))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(house.residents.stop())
        with pytest.raises(ModelUnavailable, match="was stopped"):
            await asyncio.wait_for(waiting, 1)
        house.engines["a"].gate.set()
        await asyncio.wait_for(stopping, 10)
        await asyncio.gather(everything, return_exceptions=True)
        assert house.log == ["load a", "unload a"]
