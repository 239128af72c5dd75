"""An engine of the real interface for tests of the scheduler: it times every word at its segment's length.

It records what it was given, waits where it is told to, and fails on what it is told to fail on.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from align_server.engines.engine import Engine, Progress, Result, Segment, Word, WordTiming
from align_server.metrics import Metrics
from align_server.scheduling.batcher import Batcher
from align_server.scheduling.learnt import Facts
from align_server.scheduling.memory import MemoryGuard
from align_server.scheduling.pools import Pools
from align_server.scheduling.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

GB = 2**30


class CountingEngine(Engine):
    """`poison` names the segments that break a step; `fits_ms` is the cost above which a batch runs out of memory."""

    name = "counting"
    languages = ("eng",)
    frame_ms = 10.0
    max_segment_s = 120.0
    revision = "1"
    device = "cpu"
    size_bytes = 0
    pads = False

    def __init__(
        self,
        *,
        poison: dict[str, str] | None = None,
        hold: threading.Event | None = None,
        fits_ms: int = 0,
        seconds: float = 0.0,
        pads: bool = False,
    ) -> None:
        self.pads = pads
        self.batches: list[list[str]] = []
        self.threads: dict[str, set[str]] = {"prepare": set(), "compute": set(), "decode": set()}
        self.prepared: list[str] = []
        self.loads = 0
        self._poison = poison or {}
        self._hold = hold
        self._fits_ms = fits_ms
        self._seconds = seconds

    def load(self, progress: Progress = lambda _share, _what: None) -> None:
        progress(0.5, "half")
        self.loads += 1

    def unload(self) -> None: ...

    def cost(self, duration_ms: int) -> int:
        return duration_ms

    def prepare(self, segment: Segment) -> Any:
        self._at("prepare", segment)
        self.prepared.append(segment.id)
        return segment

    def compute(self, batch: Sequence[Segment]) -> list[Any]:
        if self._hold is not None:
            self._hold.wait(10)
        time.sleep(self._seconds)
        self.batches.append([segment.id for segment in batch])
        for segment in batch:
            self._at("compute", segment)
        if self._fits_ms and sum(segment.duration_ms for segment in batch) > self._fits_ms:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
        return list(batch)

    def decode(self, scored: Segment) -> Result:
        self._at("decode", scored)
        return Result(tuple(WordTiming(0, scored.duration_ms, 1.0) for _ in scored.words))

    def _at(self, step: str, segment: Segment) -> None:
        self.threads[step].add(threading.current_thread().name)
        if self._poison.get(segment.id) == step:
            raise ValueError("poisoned")


class FixedMemory:
    """Memory whose figures a test sets."""

    def __init__(self, used: int = 0) -> None:
        self.now = self.most = used
        self.trims = 0

    def used(self) -> int:
        return self.now

    def peak(self) -> int:
        return max(self.now, self.most)

    def reset_peak(self) -> None:
        self.most = self.now

    def trim(self) -> None:
        self.trims += 1


def segment(name: str = "s", milliseconds: int = 1000) -> Segment:
    return Segment(name, np.zeros(milliseconds * 16, np.int16), (Word("hello"),))


def work(
    client: str = "a",
    name: str = "s",
    cost_ms: int = 1000,
    *,
    deadline: float | None = None,
    interactive: bool = False,
) -> Work:
    return Work(segment(name, cost_ms), client, cost_ms, interactive, deadline)


def batcher(
    engine: CountingEngine,
    lanes: int = 1,
    *,
    batch_ms: int = 60_000,
    guard: MemoryGuard | None = None,
    rate: float = 1000.0,
    pipelined: bool = True,
) -> Batcher:
    """A batcher with pools of its own; call `close` in the end."""
    return Batcher(
        engine,
        lanes,
        pools=Pools.of(1, 1),
        guard=guard or MemoryGuard(4 * GB, FixedMemory()),
        facts=Facts(batch_ms=batch_ms, rate=rate, bytes_per_ms=100.0),
        metrics=Metrics(),
        pipelined=pipelined,
    )
