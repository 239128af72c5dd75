"""The memory guard: one budget for the process, and what each model's batches take of it, learnt by watching.

Knows the process and its limits; of a GPU it knows what an engine tells. Neither gRPC nor torch.

A batch is expected to take `Facts.bytes_per_ms` for each ms of its cost. What runs at once is kept within what the
limit leaves beside the loaded models and the queued audio. The expectation follows what is seen: up at once, down
slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import psutil

from align_server.scheduling.work import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.scheduling.learnt import Facts

DEFAULT_SHARE = 0.75  # of the machine's or the container's memory
UNSEEN_BYTES_PER_MS = 4096.0  # 4 MB a second, until a batch was seen
BYTES_PER_QUEUED_MS = 96  # int16 audio, the message that brought it, and a margin
QUEUE_SHARE = 0.25  # of what the models leave, for queued audio
TIGHT = 0.9  # of the limit; above it the allocator gives back what it keeps
FORGET = 0.02  # of the way down to a smaller peak, with each observation
OBSERVE_S = 1.0  # between two looks at the peak
RECOVERY = 1.1  # how fast a limit learnt from running out grows again
RECOVERY_BATCHES = 50  # that went well before it grows
MB = 2**20
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")

CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOTS = {  # by controller, "" being all of version 2: where its groups are, and the file with the limit
    "": (Path("/sys/fs/cgroup"), "memory.max"),
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
}


def default_limit() -> int:
    """Bytes that this process may use where nobody says: a share of what the machine or its container has."""
    return int(DEFAULT_SHARE * min([psutil.virtual_memory().total, *_container_limits()]))


def _container_limits() -> list[int]:
    """Limits of the control groups that this process is in, version 2 and 1."""
    limits = []
    with contextlib.suppress(OSError):
        for line in CGROUP.read_text(encoding="ascii").splitlines():
            _, controllers, group = line.split(":", 2)
            for controller in controllers.split(","):
                if controller in CGROUP_ROOTS:
                    root, name = CGROUP_ROOTS[controller]
                    limits += _limits_of(root, group, name)
    return limits


def _limits_of(root: Path, group: str, name: str) -> list[int]:
    """The limits of a group and of all groups above it, which count too."""
    limits = []
    folder = root / group.lstrip("/")
    for above in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
            limits.append(int((above / name).read_text(encoding="ascii")))
        if above == root:
            break
    return limits


class Memory(Protocol):
    """Where memory is taken: this process, or a GPU. In bytes."""

    def used(self) -> int:
        """Taken now."""

    def peak(self) -> int:
        """The most that was taken since `reset_peak`."""

    def reset_peak(self) -> None:
        """Begin a new peak."""

    def trim(self) -> None:
        """Give what an allocator holds for later back to the system."""


class ProcessMemory:
    """Memory of this process, in bytes. Where the system keeps no resettable peak, the peak is what is used now."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._status = Path("/proc/self/status")
        self._clear = Path("/proc/self/clear_refs")
        self._trim = _malloc_trim()

    def used(self) -> int:
        """Resident now."""
        return int(self._process.memory_info().rss)

    def peak(self) -> int:
        """The most that was resident since `reset_peak`."""
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", self._status.read_text(encoding="ascii")):
                return int(found[1]) * 1024
        return self.used()

    def reset_peak(self) -> None:
        """Begin a new peak, where the system can."""
        with contextlib.suppress(OSError):
            self._clear.write_text("5", encoding="ascii")

    def trim(self) -> None:
        """Give memory that the allocator holds for later back to the system."""
        self._trim()


def allocated() -> int:
    """Bytes that were asked of the allocator and not freed, 0 where it does not say: what a leak would make grow.

    Resident memory also has what the allocator keeps for later and cannot give back, which comes and goes.
    """
    try:
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2  # glibc 2.33 or later
    except (OSError, AttributeError):
        return 0
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


class _MallInfo(ctypes.Structure):
    """The struct mallinfo2 of malloc.h: `uordblks` bytes in use in arenas, `hblkhd` in blocks mapped one by one."""

    _fields_: ClassVar[list[tuple[str, type[ctypes.c_size_t]]]] = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _malloc_trim() -> Callable[[], object]:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            trim = ctypes.CDLL("libc.so.6").malloc_trim
            return lambda: trim(0)
    return lambda: None


@dataclass(slots=True, eq=False)
class Share:
    """What one model's batches have of the budget."""

    facts: Facts
    running_ms: int = 0
    most_ms: int = 0  # running at once since the last look
    largest_ms: int = 0  # of `most_ms` in all looks
    went_well: int = 0

    @property
    def bytes_per_ms(self) -> float:
        """What each ms of cost is expected to take."""
        return self.facts.bytes_per_ms or UNSEEN_BYTES_PER_MS


class MemoryGuard:
    """Keeps models, queued audio and batches within `limit` bytes. Used from the event loop alone."""

    def __init__(self, limit: int, memory: Memory, *, queue_share: float = QUEUE_SHARE) -> None:
        self.limit = limit
        self.memory = memory
        self.idle_bytes = memory.used()
        self._queue_share = queue_share
        self._shares: list[Share] = []
        self._looked_at = 0.0

    def open(self, facts: Facts) -> Share:
        """A model was loaded."""
        share = Share(facts)
        self._shares.append(share)
        self.settle()
        return share

    def close(self, share: Share) -> None:
        """A model was unloaded."""
        self._shares.remove(share)
        self.memory.trim()
        self.settle()

    def relieve(self) -> None:
        """Where it gets tight, have what allocators keep for later given back. Safe in any thread; takes a while."""
        if self.memory.used() > TIGHT * self.limit:
            self.memory.trim()

    def settle(self) -> None:
        """Take what is used now as what the models need at rest."""
        self.idle_bytes = self.memory.used()

    @property
    def spare_bytes(self) -> int:
        """What the limit leaves beside the loaded models."""
        return max(0, self.limit - self.idle_bytes)

    @property
    def queue_ms(self) -> int:
        """How much audio may be held and promised."""
        return int(self.spare_bytes * self._queue_share / BYTES_PER_QUEUED_MS)

    @property
    def _for_batches(self) -> float:
        return self.spare_bytes * (1 - self._queue_share)

    @property
    def _taken(self) -> float:
        return sum(share.running_ms * share.bytes_per_ms for share in self._shares)

    def check(self, share: Share, cost_ms: int) -> None:
        """Refuse a segment that could not be computed even alone. Raises Invalid.

        What was seen since the warm-up has what connections and the allocator took meanwhile: it makes batches smaller,
        and is no reason never to take a segment.
        """
        needed = cost_ms * (share.facts.alone_bytes_per_ms or share.bytes_per_ms)
        if needed > self._for_batches:
            raise Invalid(
                "segment.pcm",
                f"it needs about {needed / MB:.0f} MB to compute, and the server's memory limit leaves "
                f"{self._for_batches / MB:.0f} MB; send shorter segments, or "
                "start the server with a larger --memory-limit",
            )

    def room_ms(self, share: Share) -> int:
        """The cost of the largest batch that may start now."""
        room = max(0.0, self._for_batches - self._taken) / share.bytes_per_ms
        failed = share.facts.failed_ms
        return int(min(room, failed // 2) if failed else room)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing runs, so that one segment of any size may."""
        return not any(share.running_ms for share in self._shares)

    def take(self, share: Share, cost_ms: int) -> None:
        """A batch starts."""
        share.running_ms += cost_ms
        share.most_ms = max(share.most_ms, share.running_ms)

    def give_back(self, share: Share, cost_ms: int) -> None:
        """A batch is done, and its memory is free."""
        share.running_ms -= cost_ms
        share.went_well += 1
        facts = share.facts
        if facts.failed_ms and share.went_well >= RECOVERY_BATCHES:
            share.went_well = 0
            facts.failed_ms = int(facts.failed_ms * RECOVERY) + 1

    def ran_out(self, share: Share, cost_ms: int) -> None:
        """A batch of that cost ran out of memory: none is to be half as large again for a while."""
        share.went_well = 0
        share.facts.failed_ms = min(share.facts.failed_ms or cost_ms, cost_ms)

    def look(self, held_ms: int) -> None:
        """Learn from the peak since the last look; `held_ms` of audio were held meanwhile. Cheap; call it often."""
        now = time.monotonic()
        if now - self._looked_at < OBSERVE_S:
            return
        self._looked_at = now
        active = [share for share in self._shares if share.most_ms]
        if len(active) == 1:  # what several models took together cannot be told apart
            queued = held_ms * BYTES_PER_QUEUED_MS if self._queue_share else 0  # a GPU holds none of it
            self._learn(active[0], self.memory.peak() - self.idle_bytes - queued)
        for share in self._shares:
            share.most_ms = share.running_ms
        self.memory.reset_peak()

    def _learn(self, share: Share, grown: float) -> None:
        share.largest_ms = max(share.largest_ms, share.most_ms)
        if 2 * share.most_ms < max(share.largest_ms, share.facts.batch_ms):
            return  # what else the server does, or what the allocator kept of larger batches, may be most of it
        seen = max(grown, 0.0) / share.most_ms
        known = share.facts.bytes_per_ms
        share.facts.bytes_per_ms = seen if seen > known else known + FORGET * (seen - known)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an engine ran out of memory, by the ways in which Python, numpy and torch say so."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("OutOfMemory" in type(error).__name__ or any(words in str(error) for words in OUT_OF_MEMORY))
    )
