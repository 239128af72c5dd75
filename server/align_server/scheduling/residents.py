"""The models that this server holds, one copy of each, and the state that each is in."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from align_server.engines import registry
from align_server.engines.engine import EngineLoadError
from align_server.scheduling.batcher import Batcher
from align_server.scheduling.work import Unavailable, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align_server.engines.engine import Engine
    from align_server.scheduling.admission import Throughput

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

    description: registry.ModelDescription
    state: ModelState
    detail: str = ""
    revision: str = ""
    max_segment_ms: int = 0
    is_default: bool = False


class Residents:
    """Loads the named models, the first being the default, and finds the batcher of each."""

    def __init__(
        self,
        names: Sequence[str],
        throughput: Throughput,
        lanes: int,
        *,
        make: Callable[[str], Engine],
        on_state: Callable[[str, ModelState], None],
    ) -> None:
        self.names = tuple(names)
        self._throughput = throughput
        self._lanes = lanes
        self._make = make
        self._on_state = on_state
        self._batchers: dict[str, Batcher] = {}
        self._states: dict[str, tuple[ModelState, str]] = dict.fromkeys(names, (ModelState.AVAILABLE, ""))

    @property
    def batchers(self) -> list[Batcher]:
        """Those of the models that serve."""
        return list(self._batchers.values())

    async def load(self) -> None:
        """Load every model; one that fails leaves the others serving. Raises EngineLoadError if none could be."""
        for name in self.names:
            self._set(name, ModelState.LOADING)
            try:
                engine = await asyncio.to_thread(self._make, name)
                batcher = Batcher(engine, self._throughput, self._lanes)
                await batcher.load()
            except EngineLoadError as error:
                log.error("model not loaded", model=name, why=str(error))  # noqa: TRY400  the message is for users
                self._set(name, ModelState.FAILED, str(error))
                continue
            batcher.start()
            self._batchers[name] = batcher
            self._set(name, ModelState.SERVING)
        if not self._batchers:
            failures = "; ".join(detail for _, detail in self._states.values())
            raise EngineLoadError(f"no model could be loaded: {failures}")

    async def stop(self) -> None:
        """Stop computing and let go of every model."""
        for batcher in self.batchers:
            await batcher.stop()
        self._batchers.clear()

    def get(self, name: str) -> Batcher:
        """The batcher of a model, the default's for an empty name. Raises UnknownModel or Unavailable."""
        wanted = name or self.names[0]
        if batcher := self._batchers.get(wanted):
            return batcher
        state, detail = self._states.get(wanted, (None, ""))
        if state is None:
            raise UnknownModel(f"model {wanted!r} is not served here; served are {', '.join(self.names)}")
        raise Unavailable(f"model {wanted!r} is {state.value}{': ' if detail else ''}{detail}")

    def status(self) -> list[ModelStatus]:
        """Every model that can be served here, whether it is or not. May read the disk."""
        rows = []
        for description in registry.available():
            state, detail = self._states.get(description.name, (ModelState.AVAILABLE, ""))
            row = ModelStatus(description, state, detail, is_default=description.name == self.names[0])
            if batcher := self._batchers.get(description.name):
                longest = int(batcher.engine.max_segment_s * 1000)
                row = replace(row, revision=batcher.engine.revision, max_segment_ms=longest)
            rows.append(row)
        return rows

    def _set(self, name: str, state: ModelState, detail: str = "") -> None:
        self._states[name] = (state, detail)
        self._on_state(name, state)
