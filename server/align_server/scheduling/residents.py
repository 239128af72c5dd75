"""The models that this server may hold, one copy of each, and the state that each is in.

A model is downloaded if need be and loaded, at the start or by the first who needs it, held while anybody uses it, and
unloaded after a time without use, or to make room for another. Knows neither gRPC nor torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from align_server.engines.engine import EngineLoadError
from align_server.scheduling.batcher import Batcher
from align_server.scheduling.errand import Abandoned, Errand
from align_server.scheduling.tuning import measure
from align_server.scheduling.work import ModelUnavailable, UnknownModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from align_server.engines.engine import Engine, Progress
    from align_server.engines.registry import ModelDescription
    from align_server.metrics import Metrics
    from align_server.scheduling.learnt import Learnt
    from align_server.scheduling.memory import MemoryGuard
    from align_server.scheduling.pools import Pools

RETRY_S = 30.0  # before a model that failed to load is tried again for a request
LOAD_FACTOR = 1.5  # memory of a model that was never loaded here, for each byte of it on disk
TIDY_S = 5.0  # without work, after which the allocator gives back what it keeps
MB = 2**20

log = structlog.get_logger()


class ModelState(enum.Enum):
    """Where a model is on its way to serving."""

    AVAILABLE = "available"
    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One row of the list of models."""

    description: ModelDescription
    state: ModelState
    detail: str
    is_default: bool
    batcher: Batcher | None


@dataclass(eq=False)
class _Resident:
    """One model, loaded or not. The lock is held while that changes, so that there is never a second copy.

    `download` is what is under way of it; nobody waits for the lock without ending that.
    """

    description: ModelDescription
    state: ModelState = ModelState.AVAILABLE
    detail: str = ""
    batcher: Batcher | None = None
    users: int = 0
    failed_at: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    loading: asyncio.Task[None] | None = None
    download: Errand[ModelDescription] | None = None


class _NoRoom(EngineLoadError):  # noqa: N818  a kind of refusal
    """The model is whole, but does not fit beside those in use."""


class _Stopped(EngineLoadError):  # noqa: N818  nothing is wrong with the model
    """Its loading was given up before it was done."""


class Residents:
    """Loads models by name and finds the batcher of each. The first name is the default.

    `make` makes an engine that is not loaded; `fetch` brings what a remote model needs to this machine, and describes
    it anew; `lanes` says how many batches it computes at once; `guard` gives the memory that it will live in. `idle_s`
    0 keeps models for ever.
    """

    def __init__(  # noqa: PLR0913  what it is wired to, by name
        self,
        models: Sequence[ModelDescription],
        *,
        make: Callable[[str], Engine],
        fetch: Callable[[str, Progress], ModelDescription],
        lanes: Callable[[Engine], int],
        guard: Callable[[Engine], MemoryGuard],
        learnt: Learnt,
        pools: Pools,
        metrics: Metrics,
        on_state: Callable[[str, ModelState], None],
        held_ms: Callable[[], int] = lambda: 0,
        pipelined: Callable[[Engine], bool] = lambda _: True,
        idle_s: float = 0.0,
    ) -> None:
        self._pipelined = pipelined
        self._residents = {model.name: _Resident(model) for model in models}
        self.default = models[0].name
        self._make = make
        self._fetch = fetch
        self._lanes = lanes
        self._guard = guard
        self._learnt = learnt
        self._pools = pools
        self._metrics = metrics
        self._on_state = on_state
        self._held_ms = held_ms
        self._idle_s = idle_s
        self._segments_done = 0
        self._audio_done_ms = 0
        self._tidy = True
        self._loading = asyncio.Lock()  # one at a time, so that two do not both take the last room
        self._stopping = False

    @property
    def batchers(self) -> list[Batcher]:
        """Those of the models that serve."""
        return [resident.batcher for resident in self._residents.values() if resident.batcher]

    @property
    def segments_done(self) -> int:
        """Since the start, by all models, those that were unloaded included."""
        return self._segments_done + sum(batcher.throughput.segments_done for batcher in self.batchers)

    @property
    def audio_done_ms(self) -> int:
        """Audio of these."""
        return self._audio_done_ms + sum(batcher.throughput.audio_done_ms for batcher in self.batchers)

    async def load_all(self) -> None:
        """Load every model; one that fails leaves the others serving, one that is downloaded holds up none of them.

        Raises EngineLoadError if none could be loaded.
        """
        loaded = await asyncio.gather(*map(self._loaded, self._residents.values()), return_exceptions=True)
        failures = []
        for error in filter(None, loaded):
            if not isinstance(error, ModelUnavailable):
                raise error
            failures.append(str(error))
        if not self.batchers:
            raise EngineLoadError(f"no model could be loaded: {'; '.join(failures)}")

    async def load(self, name: str) -> None:
        """Load a model, or wait until it is. Raises UnknownModel or ModelUnavailable."""
        await self._loaded(self._find(name))

    async def unload(self, name: str) -> None:
        """Unload a model that nobody uses, or end its download. Raises UnknownModel or ModelUnavailable."""
        resident = self._find(name)
        if resident.download:
            self._refuse_in_use(resident)
            resident.download.abandon()
        async with resident.lock:
            self._refuse_in_use(resident)
            if resident.batcher:
                await self._unload(resident)

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Batcher]:
        """The batcher of a model, the default's for an empty name, loaded if it was not, and kept until the end.

        Raises UnknownModel, or ModelUnavailable where it cannot be loaded.
        """
        resident = self._find(name)
        resident.users += 1
        try:
            if resident.batcher is None:
                if resident.state is ModelState.FAILED and time.monotonic() - resident.failed_at < RETRY_S:
                    raise ModelUnavailable(f"model {resident.description.name!r} failed to load: {resident.detail}")
                await self._loaded(resident)
            assert resident.batcher is not None  # noqa: S101  unloading waits until there are no users
            yield resident.batcher
        finally:
            resident.users -= 1
            if resident.batcher:
                resident.batcher.used_at = time.monotonic()

    async def refresh(self) -> None:
        """Unload what was not used for long, and give back memory that is kept for nothing. About once a second."""
        now = time.monotonic()
        for resident in self._residents.values():
            batcher = resident.batcher
            if batcher and self._idle_s and not resident.users and now - batcher.used_at > self._idle_s:
                async with resident.lock:
                    if not resident.users and resident.batcher:
                        log.info(
                            "model not used", model=resident.description.name, seconds=round(now - batcher.used_at)
                        )
                        await self._unload(resident)
        idle = [batcher for batcher in self.batchers if batcher.is_idle and now - batcher.used_at > TIDY_S]
        if len(idle) < len(self.batchers):
            self._tidy = False
        elif not self._tidy:
            self._tidy = True
            for guard in {batcher.guard for batcher in idle}:
                await asyncio.to_thread(guard.memory.trim)
            self._learnt.save()

    async def stop(self) -> None:
        """Stop computing and downloading, and let go of every model."""
        self._stopping = True
        for resident in self._residents.values():
            if resident.download:
                resident.download.abandon()
        for resident in self._residents.values():
            async with resident.lock:
                if resident.batcher:
                    await self._unload(resident)
        self._learnt.save()

    def status(self) -> list[ModelStatus]:
        """Every model that is served here, whether it is loaded or not."""
        return [
            ModelStatus(r.description, r.state, r.detail, r.description.name == self.default, r.batcher)
            for r in self._residents.values()
        ]

    def _find(self, name: str) -> _Resident:
        if resident := self._residents.get(name or self.default):
            return resident
        raise UnknownModel(f"model {name!r} is not served here; served are {', '.join(self._residents)}")

    def _refuse_in_use(self, resident: _Resident) -> None:
        if resident.users:
            users = "a call or stream" if resident.users == 1 else f"{resident.users} calls and streams"
            raise ModelUnavailable(f"model {resident.description.name!r} is in use by {users}; try again later")

    async def _loaded(self, resident: _Resident) -> None:
        """Wait until a model is loaded. Loading goes on when who asked for it has gone. Raises ModelUnavailable."""
        if resident.loading is None:
            resident.loading = asyncio.create_task(self._load_once(resident))
            resident.loading.add_done_callback(lambda task: self._load_ended(resident, task))
        await asyncio.shield(resident.loading)

    async def _load_once(self, resident: _Resident) -> None:
        async with resident.lock:
            if resident.batcher is None:
                try:
                    await self._load(resident)
                except EngineLoadError as error:
                    raise ModelUnavailable(str(error)) from error

    def _load_ended(self, resident: _Resident, task: asyncio.Task[None]) -> None:
        resident.loading = None
        if not task.cancelled():
            task.exception()  # where nobody waits any more, the log has it

    async def _load(self, resident: _Resident) -> None:
        """Download, load, measure and begin to serve. The caller holds the lock."""
        name = resident.description.name
        loop = asyncio.get_running_loop()

        def progress(share: float, what: str) -> None:
            loop.call_soon_threadsafe(self._report, resident, share, what)

        started = time.monotonic()
        engine: Engine | None = None
        try:
            if resident.description.remote:
                self._set(resident, ModelState.LOADING, "looking for its files")
                await self._download(resident, progress)
            self._set(resident, ModelState.LOADING, "waiting for memory")
            async with self._loading:
                if self._stopping:
                    raise _Stopped("the server is stopping")  # noqa: TRY301  among what else ends a load
                engine = await asyncio.to_thread(self._make, name)
                guard = self._guard(engine)
                kind = f"{engine.size_bytes} bytes, on {engine.device} in {engine.precision}"
                facts = self._learnt.facts(f"{name}, {kind}")
                await self._make_room(guard, facts.resident_bytes or int(LOAD_FACTOR * engine.size_bytes), resident)
                before = guard.memory.used()
                await asyncio.to_thread(engine.load, progress)
                progress(1.0, "measuring")
                await asyncio.to_thread(engine.warm_up)
                lanes = self._lanes(engine)
                await asyncio.to_thread(measure, engine, facts, lanes, guard.memory)
                facts.resident_bytes = max(facts.resident_bytes, guard.memory.used() - before)
        except (_NoRoom, _Stopped) as error:
            log.error("model not loaded", model=name, why=str(error))  # noqa: TRY400  the message is for users
            self._set(resident, ModelState.AVAILABLE, str(error))
            raise
        except Exception as error:
            resident.failed_at = time.monotonic()
            if engine is not None:
                await asyncio.to_thread(engine.unload)
            self._set(resident, ModelState.FAILED, str(error))
            if isinstance(error, EngineLoadError):
                log.error("model not loaded", model=name, why=str(error))  # noqa: TRY400  the message is for users
                raise
            log.exception("model not loaded", model=name)
            raise EngineLoadError(f"model {name!r} could not be loaded: {error}") from error
        self._learnt.save()
        await asyncio.to_thread(_settle)
        resident.batcher = Batcher(
            engine,
            lanes,
            pools=self._pools,
            guard=guard,
            facts=facts,
            metrics=self._metrics,
            pipelined=self._pipelined(engine),
            held_ms=self._held_ms,
        )
        self._set(resident, ModelState.SERVING, "")
        log.info(
            "model loaded",
            model=name,
            revision=engine.revision,
            device=engine.device,
            seconds=round(time.monotonic() - started, 2),
            batch_s=facts.batch_ms / 1000,
            rate=round(facts.rate, 1),
            memory_mb=guard.memory.used() // MB,
        )

    async def _download(self, resident: _Resident, progress: Progress) -> None:
        """Bring a model to this machine, while others load and serve. The caller holds the model's lock alone."""
        name = resident.description.name
        if self._stopping:
            raise _Stopped("the server is stopping")
        begun = time.monotonic()
        resident.download = Errand(lambda report: self._fetch(name, report), progress)
        try:
            resident.description = await resident.download.result()
        except Abandoned as error:
            raise _Stopped(f"the download of model {name!r} was stopped; what is there of it is kept") from error
        finally:
            resident.download = None
        log.info(
            "model fetched",
            model=name,
            what=resident.description.note,
            size_mb=resident.description.size_bytes // MB,
            seconds=round(time.monotonic() - begun, 2),
        )

    async def _make_room(self, guard: MemoryGuard, needed: int, wanted: _Resident) -> None:
        """Unload models that nobody uses, longest unused first, until `needed` bytes fit. Raises _NoRoom."""
        while guard.memory.used() + needed > guard.limit:
            idle = [
                r
                for r in self._residents.values()
                if r.batcher and not r.users and r.batcher.guard is guard and r is not wanted
            ]
            if not idle:
                name = wanted.description.name
                raise _NoRoom(
                    f"model {name!r} needs about {needed // MB} MB; {guard.memory.used() // MB} MB of the limit of "
                    f"{guard.limit // MB} MB are in use. Start the server with a larger --memory-limit or fewer models"
                )
            oldest = min(idle, key=lambda r: r.batcher.used_at if r.batcher else 0.0)
            async with oldest.lock:
                if not oldest.users and oldest.batcher:
                    log.info("model makes room", model=oldest.description.name, for_model=wanted.description.name)
                    await self._unload(oldest)

    async def _unload(self, resident: _Resident) -> None:
        """The caller holds the lock, and has seen that nobody uses it or that nobody matters any more."""
        batcher, resident.batcher = resident.batcher, None
        if batcher is None:
            return
        self._set(resident, ModelState.AVAILABLE, "")
        engine = batcher.engine
        await batcher.stop()
        self._segments_done += batcher.throughput.segments_done
        self._audio_done_ms += batcher.throughput.audio_done_ms
        await asyncio.to_thread(engine.unload)
        gc.unfreeze()
        await asyncio.to_thread(_settle)  # what was loaded refers to itself
        await asyncio.to_thread(batcher.guard.memory.trim)
        batcher.guard.settle()
        log.info("model unloaded", model=resident.description.name, memory_mb=batcher.guard.memory.used() // MB)

    def _report(self, resident: _Resident, share: float, what: str) -> None:
        if resident.state is ModelState.LOADING:
            resident.detail = f"{what}, {share:.0%}"
            log.debug("loading", model=resident.description.name, share=round(share, 2), what=what)

    def _set(self, resident: _Resident, state: ModelState, detail: str) -> None:
        resident.state, resident.detail = state, detail
        self._on_state(resident.description.name, state)


def _settle() -> None:
    """Collect garbage, and keep the half million objects that stay from being looked through again and again."""
    gc.collect()
    gc.freeze()
