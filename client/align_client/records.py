"""What was written before, and of what: a small database in the user's state folder.

Knows SQLite; knows neither CHAT nor servers. Several processes may use it at once, and one that is killed leaves it
whole. It saves work and no more: where it is damaged or cannot be used, there is one warning and nothing is known.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Final, Self

import platformdirs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

NAME: Final = "outputs.sqlite"
PATIENCE_S: Final = 30.0  # for other processes, each of which writes for some milliseconds
DAY_S: Final = 86_400
KEPT_S: Final = 365 * DAY_S

# Its number goes up with the form of what is kept: what an older or newer chatalign wrote is then not read.
_TABLE: Final = "outputs_1"
_MAKE: Final = f"CREATE TABLE IF NOT EXISTS {_TABLE} (target BLOB PRIMARY KEY, record BLOB, written REAL) WITHOUT ROWID"
_FIND: Final = f"SELECT record FROM {_TABLE} WHERE target = ?"  # noqa: S608  a constant
_KEEP: Final = f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?)"  # noqa: S608  the same
_OLD: Final = f"DELETE FROM {_TABLE} WHERE written < ?"  # noqa: S608  the same
_TARGETS: Final = f"SELECT target FROM {_TABLE}"  # noqa: S608  the same
_GONE: Final = f"DELETE FROM {_TABLE} WHERE target = ? AND written <= ?"  # noqa: S608  the same


class Records:
    """One record for each output, by its path. Use as `with`; threads may share it.

    `path` is the database's, by default in the user's state folder. `warning` says what went wrong with it, or "".
    No method raises anything for a database that cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or platformdirs.user_state_path("chatalign") / NAME
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.warning = ""
        with self._lock:
            try:
                self._open()
            except (sqlite3.Error, OSError) as error:
                self._mend(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, target: Path) -> dict[str, Any] | None:
        """What was kept of the output at that path."""
        for (record,) in self._run(_FIND, (os.fsencode(target),)):
            try:
                values = json.loads(zlib.decompress(record))
            except (TypeError, ValueError, zlib.error):
                return None
            return values if isinstance(values, dict) else None
        return None

    def keep(self, target: Path, values: dict[str, Any]) -> None:
        """Keep these plain values of the output at that path, instead of what was kept of it before."""
        record = zlib.compress(json.dumps(values).encode("ascii"))
        self._run(_KEEP, (os.fsencode(target), record, time.time()))

    def close(self) -> None:
        """Once a day, forget outputs that are gone and those of more than a year ago; then close the database."""
        self._tidy(time.time())
        with self._lock:
            self._shut()

    def _tidy(self, now: float) -> None:
        today = int(now // DAY_S)
        if self._run("PRAGMA user_version") in ([], [(today,)]):
            return
        self._run(_OLD, (now - KEPT_S,))
        for (target,) in self._run(_TARGETS):
            if not os.path.lexists(target):
                self._run(_GONE, (target, now))
        self._run(f"PRAGMA user_version = {today}")

    def _run(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement gives; none where the database cannot be used."""
        with self._lock:
            if self._connection is None:
                return []
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                self._mend(error)
                return []

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Each statement is a transaction of its own. No write-ahead log: a home folder may be on a network.
        self._connection = sqlite3.connect(self._path, PATIENCE_S, isolation_level=None, check_same_thread=False)
        self._connection.execute(_MAKE)

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _mend(self, error: Exception) -> None:
        """Start anew where the database is damaged, once; where it cannot be used, do without. The lock is held."""
        self._shut()
        # The errors of a file's damage are of this very class, those of its use of classes below it.
        is_damaged = type(error) is sqlite3.DatabaseError
        if self.warning or not is_damaged:
            self.warning = self.warning or f"{self._path} cannot be used ({error}); what was aligned is not recorded"
            return
        self.warning = f"{self._path} is damaged ({error}) and was begun anew; what was aligned before is aligned again"
        try:
            self._begin_anew()
            self._open()
        except (sqlite3.Error, OSError):
            self._shut()

    def _begin_anew(self) -> None:
        """Remove the database, unless another process has just done so."""
        with self._path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(self._path):
                for path in (self._path, self._path.with_name(f"{self._path.name}-journal")):
                    path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    connection = sqlite3.connect(path, PATIENCE_S, isolation_level=None)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
