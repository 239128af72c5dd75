"""One server per address: an flock'd file that also says whose it is.

gRPC takes over a socket path in use without a word, and a server that stops removes whatever socket lies
at its path. So the lock comes before the bind, and only the socket that was bound is removed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class LockedError(Exception):
    """Another server holds the address."""


class UnsafeFolderError(Exception):
    """The folder of the socket could be entered by others."""


def private_folder(folder: Path) -> None:
    """Make the folder with mode 0700, or check that it is ours and closed to others. Raises UnsafeFolderError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnsafeFolderError(f"{folder} is not a folder of yours; give another place with --socket")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UnsafeFolderError(
            f"{folder} can be entered by other users (mode {stat.S_IMODE(found.st_mode):o}), who could then use the "
            f"server; run: chmod 700 {folder}, or give a folder of its own with --socket"
        )


def owner(path: Path) -> int | None:
    """The process id of the server that holds the lock, or None where nobody does."""
    try:
        with path.open("r", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None


class AddressLock:
    """Holds the lock from `acquire` to the end of the process, or to `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock and write our process id. Raises LockedError with the holder's."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(f"a server (process {owner(self._path)}) already holds {self._path}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go. The file stays: removing it would race with a server that is about to lock it."""
        os.close(self._descriptor)
