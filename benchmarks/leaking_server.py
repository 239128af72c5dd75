"""An align-server with a fault planted in it, to see whether the leak detector finds it.

    python leaking_server.py run --socket ...

`$PLANTED` says what every segment that nobody waits for any more leaves behind: memory, descriptor, thread, or
several of these with commas.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from align_server import cli
from align_server.stream import Edge

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.scheduling.work import Work

KEPT_BYTES = 128_000  # the audio of four seconds: what it is to forget one segment
kept: list[object] = []


def _memory() -> None:
    kept.append(os.urandom(KEPT_BYTES))


def _descriptor() -> None:
    kept.append(os.dup(0))


def _thread() -> None:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    kept.append(thread)


FAULTS = {"memory": _memory, "descriptor": _descriptor, "thread": _thread}


def plant(faults: list[Callable[[], None]]) -> None:
    """Leave something behind wherever a segment is over and was cancelled."""
    report = Edge.report

    def leaking(self: Edge, work: Work, *rest: Any) -> None:
        report(self, work, *rest)
        if work.future.cancelled():
            for fault in faults:
                fault()

    Edge.report = leaking  # type: ignore[assignment, method-assign]  # that is the fault


if __name__ == "__main__":
    plant([FAULTS[name] for name in os.environ["PLANTED"].split(",")])
    cli.main()
