"""The threads that compute: at a lower priority than the one that talks to clients. Knows nothing of what they do."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

NICENESS = 5  # of the computing threads, so that the event loop and the clients come first


def worker_pool(size: int, name: str) -> ThreadPoolExecutor:
    """Threads that compute, at a lower priority than the one that talks to clients."""
    return ThreadPoolExecutor(size, thread_name_prefix=f"align-{name}", initializer=_be_nice)


def _be_nice() -> None:
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@dataclass(frozen=True, slots=True)
class Pools:
    """The threads that all models share: those that prepare and those that decode."""

    preprocess: ThreadPoolExecutor
    decode: ThreadPoolExecutor

    @classmethod
    def of(cls, preprocess: int, decode: int) -> Pools:
        """Pools of these sizes."""
        return cls(worker_pool(preprocess, "preprocess"), worker_pool(decode, "decode"))

    def shutdown(self) -> None:
        """Wait for what runs, and end the threads."""
        self.preprocess.shutdown()
        self.decode.shutdown()
