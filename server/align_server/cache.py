"""Results that were computed before, on disk: the same audio and words for the same model are not computed again.

Knows bytes, keys and LMDB; knows neither messages nor models. A store belongs to one user of one machine; several
servers may share it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
from typing import TYPE_CHECKING, Final

import lmdb
import structlog
import xxhash

from align_server import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from align_server.engines.engine import Segment

FULL: Final = 0.8  # of the store's size, which two generations of results share; the rest is for writing
WRITE_S: Final = 1.0  # for which results are gathered: each commit waits for the disk
YOUNG: Final = b"young"  # which generation is being written, in the store's own table
GENERATIONS: Final = (b"a", b"b")
VERSIONS: Final = f"chatalign {__version__}, torch {importlib.metadata.version('torch')}"

log = structlog.get_logger()


def key(revision: str, device: str, segment: Segment) -> bytes:
    """What a result depends on, 16 bytes: model, device, audio, words, what is asked, and the versions that compute.

    A hash of that length has the same value for two of a billion segments once in 10^20 times; it is no protection
    from somebody who looks for such a pair, who can only spoil a store of their own.
    """
    digest = xxhash.xxh3_128()
    asked = "phones" if segment.phones else ""
    if segment.transcribe is not None:
        asked += f"transcribe {segment.transcribe}"
    words = "\0".join(f"{word.text}\0{word.language}\0{word.kind.value}" for word in segment.words)
    digest.update(f"{VERSIONS}\0{revision}\0{device}\0{asked}\0{words}\0".encode())
    digest.update(segment.pcm.data)
    return digest.digest()


class ResultCache:
    """A store of `limit_mb` at most in `folder`.

    Results are in two generations: what is found in the old one is kept in the young one too, and when that is full,
    the old one is dropped and the two change places.

    `find` and `keep` may be called on the event loop: the first reads memory, mostly, the second writes later, in a
    thread. A store that cannot be used costs its results and a line in the log, never an answer.
    """

    def __init__(self, folder: Path, limit_mb: int) -> None:
        self.hits = 0
        self.misses = 0
        self._limit = limit_mb << 20
        self._kept: dict[bytes, bytes] = {}  # not yet written
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._folder = folder
        self._store: lmdb.Environment | None = None
        self._tables: dict[bytes, lmdb._Database] = {}
        self._writer = threading.Thread(target=self._write_all, name="align-cache", daemon=True)
        with self._surviving("opened"):
            self._open()
        self._writer.start()

    @property
    def size_bytes(self) -> int:
        """What it takes on disk, free pages included."""
        store = self._store
        if store is None:
            return 0
        return int(store.info()["last_pgno"] + 1) * int(store.stat()["psize"])

    def find(self, name: bytes) -> bytes | None:
        """The result that was kept under a key."""
        found = self._kept.get(name)
        if found is None and (store := self._store) is not None:
            with self._surviving("read"), store.begin(buffers=False) as reading:
                young = self._young(reading)
                found = reading.get(name, db=self._tables[young])
                if found is None and (found := reading.get(name, db=self._tables[_other(young)])) is not None:
                    self.keep(name, found)
        self.hits += found is not None
        self.misses += found is None
        return found

    def keep(self, name: bytes, result: bytes) -> None:
        """Keep a result; it is on disk a second later, or when the store is closed."""
        if self._store is None:
            return
        with self._lock:
            self._kept[name] = result
        self._wanted.set()

    def close(self) -> None:
        """Write what is not yet written, and let go of the store."""
        self._stopped.set()
        self._wanted.set()
        self._writer.join()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = lmdb.open(str(self._folder), map_size=self._limit, max_dbs=len(GENERATIONS), mode=0o600)
        self._store.reader_check()  # places of processes that were killed
        self._tables = {generation: self._store.open_db(generation) for generation in GENERATIONS}

    def _write_all(self) -> None:
        while True:
            self._wanted.wait()
            self._stopped.wait(WRITE_S)
            self._wanted.clear()
            with self._surviving("written"):
                self._write()
            if self._stopped.is_set() and not self._kept:
                return

    def _write(self) -> None:
        with self._lock:
            some = dict(self._kept)
        if (store := self._store) is not None and some:
            try:
                if self._is_full(store):
                    self._turn(store)
                with store.begin(write=True) as writing:
                    table = self._tables[self._young(writing)]
                    for name, result in some.items():
                        writing.put(name, result, db=table)
            except lmdb.MapFullError:  # by another server that shares it
                with store.begin(write=True) as writing:
                    for table in self._tables.values():
                        writing.drop(table, delete=False)
        with self._lock:
            for name, result in some.items():
                if self._kept.get(name) is result:
                    del self._kept[name]

    def _is_full(self, store: lmdb.Environment) -> bool:
        """Whether the young generation has its half of the store."""
        with store.begin() as reading:
            stat = reading.stat(self._tables[self._young(reading)])
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return bool(pages * stat["psize"] > self._limit * FULL / 2)

    def _turn(self, store: lmdb.Environment) -> None:
        """Drop the old generation and begin to write it anew: it is the young one now."""
        with store.begin(write=True) as writing:
            young = _other(self._young(writing))
            writing.drop(self._tables[young], delete=False)
            writing.put(YOUNG, young)

    @staticmethod
    def _young(transaction: lmdb.Transaction) -> bytes:
        young = transaction.get(YOUNG, GENERATIONS[0])
        return bytes(young) if young in GENERATIONS else GENERATIONS[0]

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Do without the store from the first fault on."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            self._store = None
            self._kept.clear()
            log.warning(
                "results are not kept", because=f"the store in {self._folder} cannot be {what}: {error}; delete it"
            )


def _other(generation: bytes) -> bytes:
    return GENERATIONS[1] if generation == GENERATIONS[0] else GENERATIONS[0]
