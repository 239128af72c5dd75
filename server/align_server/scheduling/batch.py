"""Work that goes through an engine's steps together."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from align_server.scheduling.work import Work

LONG_MS = 30_000  # of cost: items above this are not on all lanes at once


@dataclass(slots=True, eq=False)
class Batch:
    """Work on its way; `cost_ms` is what the batch was expected to cost when it was taken."""

    works: list[Work]
    interactive: bool
    cost_ms: int
    items: list[tuple[Work, Any]] = field(default_factory=list)  # prepared
    done: list[Work] = field(default_factory=list)  # computed
    scored: deque[tuple[Work, Any]] = field(default_factory=deque)  # and not yet decoded
    is_computed: bool = False
    is_decoding: bool = False
    taken_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    prepare_s: float = 0.0
    decode_s: float = 0.0

    @property
    def is_long(self) -> bool:
        """Whether one of its items is."""
        return max(work.cost_ms for work in self.works) > LONG_MS

    def told(self, seconds: float) -> dict[str, float]:
        """What its line in the log says of it, which took that long to compute."""
        return {
            "segments": len(self.done),
            "audio_ms": sum(work.segment.duration_ms for work in self.done),
            "prepare_s": round(self.prepare_s, 4),
            "compute_s": round(seconds, 4),
        }


def groups(works: Sequence[Work], seconds: Callable[[int], float], most_s: float) -> Iterator[list[Work]]:
    """Works in their order, together while they take `most_s` in all; `seconds` tells how long a cost takes."""
    group: list[Work] = []
    took_s = 0.0
    for work in works:
        takes_s = seconds(work.cost_ms)
        if group and took_s + takes_s > most_s:
            yield group
            group, took_s = [], 0.0
        group.append(work)
        took_s += takes_s
    yield group
