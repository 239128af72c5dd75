"""Work that goes through an engine's steps together."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
