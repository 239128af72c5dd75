"""Finds leaks: looks at a process again and again, and tells growth that goes on from growth that has come to rest.

Memory that is in use, Python's blocks, threads and file descriptors. Knows nothing of what the process does; Linux has
file descriptors to count. Resident memory is looked at with more patience: it has what the allocator keeps for later,
in pieces that come and go.
The slope is that of Theil and Sen, the median of the slopes between all pairs: a third of the samples may be wild.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psutil

SETTLING = 0.5  # of the samples, from the first on, that are not judged: caches and pools fill
SURE = 2.6  # standard deviations: what grows is taken for a leak where 99 of 100 flat ones would grow less
MB = 2**20
FEWEST = 8  # samples that can be judged


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that can leak. `tolerated` growth from the first judged sample to the last is none; `unit` is shown."""

    name: str
    tolerated: float
    unit: str
    size: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one kind did. `growth` is from the first judged sample to the last; `at_least` its lower bound."""

    kind: Kind
    level: float
    growth: float
    at_least: float
    seconds: float

    @property
    def is_leaking(self) -> bool:
        """Whether it surely grew, and by more than is tolerated."""
        return self.at_least > 0 and self.growth > self.kind.tolerated

    def __str__(self) -> str:
        kind = self.kind
        per_minute = self.growth / self.seconds * 60 / kind.size
        return f"{kind.name} {self.level / kind.size:.0f}{kind.unit}, {per_minute:+.1f}{kind.unit} a minute"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process had at a moment, by the name of the kind."""

    at_s: float
    levels: dict[str, float]


MEMORY = Kind("memory in use", tolerated=4 * MB, unit=" MB", size=MB)
BLOCKS = Kind("Python blocks", tolerated=10_000, unit="k", size=1000)
RESIDENT = Kind("resident", tolerated=32 * MB, unit=" MB", size=MB)
THREADS = Kind("threads", tolerated=0.5, unit="")
DESCRIPTORS = Kind("file descriptors", tolerated=0.5, unit="")
KINDS = (MEMORY, BLOCKS, RESIDENT, THREADS, DESCRIPTORS)


class Detector:
    """Samples of one process. Call `look` when it is at rest, about once a second; then `verdicts`.

    `allocated` says how many bytes it has in use, and how many blocks of Python's.
    """

    def __init__(self, process: psutil.Process, allocated: Callable[[], tuple[float, float]]) -> None:
        self._process = process
        self._allocated = allocated
        self.samples: list[Sample] = []

    def look(self) -> None:
        """Take a sample now."""
        in_use, blocks = self._allocated()
        with self._process.oneshot():
            levels = {
                MEMORY.name: in_use,
                BLOCKS.name: blocks,
                RESIDENT.name: float(self._process.memory_info().rss),
                THREADS.name: float(self._process.num_threads()),
                DESCRIPTORS.name: float(self._process.num_fds()),
            }
        self.samples.append(Sample(time.monotonic(), levels))

    def verdicts(self) -> list[Verdict]:
        """One for each kind. Raises ValueError where there are too few samples to judge."""
        judged = self.samples[int(len(self.samples) * SETTLING) :]
        if len(judged) < FEWEST:
            raise ValueError(f"{len(judged)} samples after settling are too few to judge; {FEWEST} are needed")
        return [_judge(kind, judged) for kind in KINDS]


def _judge(kind: Kind, samples: Sequence[Sample]) -> Verdict:
    """The slope of Theil and Sen with its lower bound, as Sen gives it from Kendall's statistic."""
    levels = [sample.levels[kind.name] for sample in samples]
    slopes = sorted(
        (late.levels[kind.name] - early.levels[kind.name]) / (late.at_s - early.at_s)
        for early, late in itertools.combinations(samples, 2)
    )
    n = len(samples)
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    lower = slopes[max(0, math.floor((len(slopes) - SURE * deviation) / 2))]
    seconds = samples[-1].at_s - samples[0].at_s
    return Verdict(kind, statistics.median(levels), statistics.median(slopes) * seconds, lower * seconds, seconds)
