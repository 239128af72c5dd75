"""Which stretches of a recording the utterances of a transcript claim, and how much room each has.

Knows bullets alone.
"""

from __future__ import annotations

import bisect
import itertools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align_client.chat.wor import Bullet


class Timeline:
    """The bullets of a transcript, each with an end after its start. Every question takes logarithmic time."""

    def __init__(self, bullets: Sequence[Bullet]) -> None:
        by_start = sorted(bullets, key=lambda bullet: bullet.start_ms)
        self._starts = [bullet.start_ms for bullet in by_start]
        self._latest_ends = list(itertools.accumulate((bullet.end_ms for bullet in by_start), max))
        by_end = sorted(bullets, key=lambda bullet: bullet.end_ms)
        self._ends = [bullet.end_ms for bullet in by_end]
        self._earliest_starts = list(itertools.accumulate((bullet.start_ms for bullet in reversed(by_end)), min))

    def room(self, bullet: Bullet) -> tuple[int, int]:
        """Start and end of the stretch around one of the bullets that no other claims, in ms.

        On a side where another bullet overlaps, that is the bullet's own edge; after the last there is no end.
        """
        earlier = bisect.bisect_left(self._starts, bullet.start_ms)
        later = len(self._ends) - bisect.bisect_right(self._ends, bullet.end_ms)
        start = self._latest_ends[earlier - 1] if earlier else 0
        end = self._earliest_starts[later - 1] if later else sys.maxsize
        return min(start, bullet.start_ms), max(end, bullet.end_ms)

    def overlaps(self, bullet: Bullet) -> bool:
        """Whether another bullet claims a part of this one."""
        return self._claims(bullet.start_ms, bullet.end_ms) > 1  # itself

    def is_free(self, start_ms: int, end_ms: int) -> bool:
        """Whether the stretch does not run backwards and no bullet claims a part of it."""
        return start_ms <= end_ms and not self._claims(start_ms, end_ms)

    def _claims(self, start_ms: int, end_ms: int) -> int:
        started = bisect.bisect_left(self._starts, end_ms)
        ended = bisect.bisect_right(self._ends, start_ms)
        return started - ended
