"""One engine on several devices: a copy of the model on each, and each batch on the one that has the fewest.

Knows the interface of engines, and neither torch nor any model.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from align_server.engines.engine import Engine, EngineLoadError, Progress, Result, Scanning, Segment, Word, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Replicas(Engine):
    """Engines of one model, each on a device of its own, as one engine.

    Replicas have the same weights and precision, and devices of one kind, so that it makes no difference which
    computes. All but computing is the first's. `compute` raises what the replica raises.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._first = self._engines[0]
        self._batches = [0] * len(self._engines)  # that each computes now
        self._lock = threading.Lock()

    @property
    def replicas(self) -> int:
        """How many there are."""
        return len(self._engines)

    @property
    def name(self) -> str:
        """What users call the model."""
        return self._first.name

    @property
    def languages(self) -> tuple[str, ...]:
        """The model's."""
        return self._first.languages

    @property
    def frame_ms(self) -> float:
        """The model's."""
        return self._first.frame_ms

    @property
    def max_segment_s(self) -> float:
        """The model's."""
        return self._first.max_segment_s

    @property
    def revision(self) -> str:
        """The model's; of each replica the same once they are loaded."""
        return self._first.revision

    @property
    def device(self) -> str:
        """The kind that all are of: cuda for cuda:0, cuda:1 and so on."""
        return self._first.device.partition(":")[0]

    @property
    def precision(self) -> str:
        """What all compute in."""
        return self._first.precision

    @property
    def size_bytes(self) -> int:
        """What `load` reads from disk: each replica reads all of it."""
        return sum(engine.size_bytes for engine in self._engines)

    @property
    def pads(self) -> bool:
        """As each does."""
        return self._first.pads

    @property
    def transcribes(self) -> bool:
        """As each does."""
        return self._first.transcribes

    @property
    def phones(self) -> bool:
        """As each has."""
        return self._first.phones

    @property
    def scanning(self) -> Scanning | None:
        """The model's."""
        return self._first.scanning

    def symbols(self, word: Word) -> tuple[int, ...]:
        """The model's."""
        return self._first.symbols(word)

    def load(self, progress: Progress = silent) -> None:
        """Load one after the other, so that no more than one is read into the machine's own memory at a time.

        Raises EngineLoadError: where one cannot be loaded, and where one had to take another precision. None stays
        loaded then.
        """
        try:
            for i, engine in enumerate(self._engines):
                engine.load(partial(self._report, progress, i))
            self._compare()
        except BaseException:
            self.unload()
            raise

    def _report(self, progress: Progress, done: int, share: float, what: str) -> None:
        progress((done + share) / len(self._engines), what)

    def _compare(self) -> None:
        """Raises EngineLoadError where replicas would not give the same times."""
        if len({engine.revision for engine in self._engines}) > 1:
            ways = ", ".join(f"{engine.precision} on {engine.device}" for engine in self._engines)
            raise EngineLoadError(
                f"the replicas of {self.name} are not alike: {ways}; start with --precision fp32, or name one device, "
                f"such as --device {self._first.device}"
            )

    def warm_up(self) -> None:
        """Run one real forward on each."""
        for engine in self._engines:
            engine.warm_up()

    def probe(self, duration_ms: int) -> Segment:
        """The model's."""
        return self._first.probe(duration_ms)

    def cost(self, duration_ms: int) -> int:
        """The model's."""
        return self._first.cost(duration_ms)

    def prepare(self, segment: Segment) -> Any:
        """Get a segment ready for any of them."""
        return self._first.prepare(segment)

    def compute(self, batch: Sequence[Any]) -> list[Any]:
        """Score prepared segments on the replica that computes the fewest batches."""
        with self._least_busy() as engine:
            return engine.compute(batch)

    @contextlib.contextmanager
    def _least_busy(self) -> Iterator[Engine]:
        """Of several the first, which counts as computing one batch more until the end."""
        with self._lock:
            i = self._batches.index(min(self._batches))
            self._batches[i] += 1
        try:
            yield self._engines[i]
        finally:
            with self._lock:
                self._batches[i] -= 1

    def decode(self, scored: Any) -> Result:
        """Find the times in what any of them computed."""
        return self._first.decode(scored)

    def unload(self) -> None:
        """Let go of the weights of all."""
        for engine in self._engines:
            engine.unload()
