"""Results on their way from the threads that computed them to the event loop, several at a time."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from align_server.engines.engine import Result
    from align_server.scheduling.work import Work


class Answers:
    """A queue of results. `put` and `leave` are for any thread, `deliver` for the event loop.

    `hand_over` is called on the loop with each result.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, hand_over: Callable[[Work, Result], None]) -> None:
        self._loop = loop
        self._hand_over = hand_over
        self._waiting: deque[tuple[Work, Result]] = deque()
        self._leaving = False
        self._lock = threading.Lock()

    def put(self, work: Work, result: Result) -> None:
        """Add a result; it leaves with the others."""
        self._waiting.append((work, result))

    def leave(self) -> None:
        """Have the loop hand over what is there: once for results that are ready together."""
        with self._lock:
            if self._leaving or not self._waiting:
                return
            self._leaving = True
        self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Hand over what is there."""
        with self._lock:
            self._leaving = False
        while self._waiting:
            self._hand_over(*self._waiting.popleft())
