"""One call in a thread of its own that nothing waits for: neither the event loop nor the interpreter, when they end.

For what may take hours, such as a download. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.engines.engine import Progress

T = TypeVar("T")


class Abandoned(Exception):  # noqa: N818  nothing went wrong
    """Nobody wants the result any more."""


class Errand(Generic[T]):
    """A call that has begun. It is given a callback for its progress, which ends it once it was abandoned."""

    def __init__(self, call: Callable[[Progress], T], progress: Progress) -> None:
        self._call = call
        self._watch = progress
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[T] = self._loop.create_future()
        self._abandoned = threading.Event()
        threading.Thread(target=self._run, name="align-errand", daemon=True).start()

    async def result(self) -> T:
        """What the call returns. Raises what it raises, or Abandoned."""
        return await self._outcome

    def abandon(self) -> None:
        """Give the call up: who waits for it is let go at once, and its thread ends when it next tells of progress."""
        self._abandoned.set()
        if not self._outcome.done():
            self._outcome.set_exception(Abandoned())

    def _run(self) -> None:
        try:
            value = self._call(self._progress)
        except BaseException as error:  # noqa: BLE001  whatever it is, who waits has to know
            self._tell(self._outcome.set_exception, error)
        else:
            self._tell(self._outcome.set_result, value)

    def _progress(self, share: float, what: str) -> None:
        if self._abandoned.is_set():
            raise Abandoned
        self._watch(share, what)

    def _tell(self, tell: Callable[..., None], what: object) -> None:
        def settle() -> None:
            if not self._outcome.done():
                tell(what)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(settle)
