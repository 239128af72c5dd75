"""Runs over a corpus whose client and server are killed in turn at random moments: what is seen, and what comes of it.

With SIGKILL, which nobody can prepare for. A server is started again on its socket, with the results that it kept on
disk, and the client waits for it; a client is started again.
"""

from __future__ import annotations

import random
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import soundfile

import processes
from align_client.chat.document import Document
from align_client.media.locate import find_media
from align_client.media.stream import SAMPLE_RATE, read
from align_client.reaching import NO_SERVER
from inputs import PROJECT
from rows import Row, Scale

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

KILLS = 50
COPIES = 30  # of the examples
SEED = 1
MOMENT_S = (0.3, 1.2)  # after a start; before, a client imports and has touched nothing
WRITES = 4  # one of so many kills of the client waits until it writes
LOOK_S = 0.005
LONGEST_S = 120.0  # of a run that nobody kills any more


@dataclass(slots=True)
class _Tally:
    """Of all runs together. Files are by name, with the run before it."""

    clients: int = 0
    servers: int = 0
    in_vain: int = 0  # clients that came while there was no server
    runs: int = 0
    equal: int = 0
    files: int = 0
    looks: int = 0
    seconds: float = 0.0
    half: set[str] = field(default_factory=set)
    temporary: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    @property
    def kills(self) -> int:
        return self.clients + self.servers


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        _write_corpus(folder / "corpus")
        with processes.server() as server:
            undisturbed_s = _to_the_end(folder, "undisturbed", server.address)
        wanted = _files(folder / "undisturbed")
        trial = _Trial(folder, wanted, most=scale.of(KILLS // 5, KILLS))
        tally = trial.tally
        while tally.kills < trial.most:
            trial.run()
    what = f"align-client over {len(wanted)} files ({undisturbed_s:.1f} s), killed in turn with its server"
    kills = (
        f"{tally.clients}, {tally.servers}; {tally.runs} runs; {tally.in_vain} clients came when there was no server"
    )
    yield Row(f"{what}: kills of the client, of the server", kills)
    equal = tally.equal == tally.files
    yield Row(f"{what}: files as an undisturbed run writes them", f"{tally.equal} of {tally.files}", "all", equal)
    yield _none(f"{what}: half files that were seen, in {tally.looks} looks", tally.half)
    yield _none(f"{what}: temporary files left in the end ({len(tally.temporary)} were seen)", tally.left)
    lost_s = (tally.seconds - tally.runs * undisturbed_s) / tally.kills
    yield Row(f"{what}: seconds lost to a kill, a server's start included", f"{lost_s:.1f}")


def _write_corpus(folder: Path) -> None:
    """The examples over and over, each time a little softer: what was computed for one is not an answer for another."""
    for path in sorted((PROJECT / "examples").glob("*.cha")):
        pcm = read(find_media(path, Document.parse(path.read_bytes()).media, ()))
        for number in range(COPIES):
            target = folder / str(number) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            softer = (pcm * (1 - number / 1000)).astype(np.int16)
            soundfile.write(target.with_suffix(".flac"), softer, SAMPLE_RATE)


def _none(what: str, found: set[str]) -> Row:
    return Row(what, str(len(found)), "0", not found)


class _Trial:
    """Runs over the corpus of `folder`, each into a folder of its own, until `most` kills are done."""

    def __init__(self, folder: Path, wanted: dict[str, bytes], *, most: int) -> None:
        self.tally = _Tally()
        self.most = most
        self._folder = folder
        self._wanted = wanted
        self._chance = random.Random(SEED)  # noqa: S311  any moments will do

    def run(self) -> None:
        """Kill until the client comes to its end or enough is killed; run to the end, and look at what is there."""
        number = self.tally.runs
        room, out = self._folder / f"room-{number}", self._folder / f"out-{number}"
        room.mkdir(mode=0o700)
        with _Watch(out, self._wanted, self.tally):
            self._disturb(room, out.name)
        found = _files(out)
        self.tally.runs += 1
        self.tally.files += len(self._wanted)
        self.tally.equal += sum(found.get(name) == data for name, data in self._wanted.items())
        self.tally.left |= {f"{out.name}/{name}" for name in found.keys() - self._wanted.keys()}

    def _disturb(self, room: Path, out: str) -> None:
        tally = self.tally
        log = room / "client.log"
        server = _serve(room)
        client: subprocess.Popen[bytes] | None = None
        started = time.perf_counter()
        try:
            while True:
                client = client or _start(self._folder, out, server.address, log)
                is_enough = tally.kills >= self.most
                status = _status(client, LONGEST_S if is_enough else self._chance.uniform(*MOMENT_S))
                if status is None and is_enough:
                    raise RuntimeError(f"align-client did not come to its end within {LONGEST_S:g} s")
                if status is None and tally.clients == tally.servers:
                    if tally.clients % WRITES == WRITES - 1 and not _writes(self._folder / out, client):
                        continue
                    client.kill()
                    client.wait()
                    client = None
                    tally.clients += 1
                elif status is None:
                    server.process.kill()
                    server.process.wait()
                    tally.servers += 1
                    server = _serve(room)
                elif status == NO_SERVER and log.read_text(encoding="utf-8").startswith("Error: no server answers"):
                    client = None
                    tally.in_vain += 1
                elif status:
                    raise RuntimeError(f"align-client ended with {status}: {log.read_text(encoding='utf-8')}")
                else:
                    break
            tally.seconds += time.perf_counter() - started
            _to_the_end(self._folder, out, server.address)
        finally:
            if client is not None:
                client.kill()
                client.wait()
            server.process.terminate()
            server.process.wait()


def _serve(room: Path) -> processes.ServerProcess:
    return processes.launch(room, "--cache", "64M", settings={"XDG_CACHE_HOME": str(room / "cache")})


def _command(folder: Path, out: str, address: str) -> list[str]:
    corpus, target = str(folder / "corpus"), str(folder / out)
    return processes.client_command("align", corpus, "-o", target, "--server", address, "--jobs", "2")


def _start(folder: Path, out: str, address: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(_command(folder, out, address), stderr=output)


def _status(client: subprocess.Popen[bytes], within_s: float) -> int | None:
    """What it ends with in that time, or None."""
    try:
        return client.wait(within_s)
    except subprocess.TimeoutExpired:
        return None


def _writes(out: Path, client: subprocess.Popen[bytes]) -> bool:
    """Wait for a temporary file that was not there; False where the client ends before."""
    before = set(out.rglob("*.tmp"))
    while client.poll() is None:
        if not before.issuperset(out.rglob("*.tmp")):
            return True
    return False


def _to_the_end(folder: Path, out: str, address: str) -> float:
    """The seconds that a run takes which nobody disturbs."""
    done = processes.run(*_command(folder, out, address))
    if done.status:
        raise RuntimeError(f"align-client ended with {done.status}: {done.errors}")
    return done.wall_s


def _files(folder: Path) -> dict[str, bytes]:
    """Every file below that folder, by its place there, less those that vanish meanwhile."""
    found = {}
    for path in folder.rglob("*"):
        try:
            found[str(path.relative_to(folder))] = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            continue
    return found


class _Watch:
    """Looks at a folder all the time, in a thread, for files that are not what they are to be. Use as `with`."""

    def __init__(self, folder: Path, wanted: dict[str, bytes], tally: _Tally) -> None:
        self._folder = folder
        self._wanted = wanted
        self._tally = tally
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._looking = self._pool.submit(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._looking.result()  # raises what ended it too soon

    def _look(self) -> None:
        seen: dict[Path, tuple[int, int, int]] = {}  # files that were read, as they were then
        while not self._over.wait(LOOK_S):
            self._tally.looks += 1
            for path in self._folder.rglob("*"):
                name = str(path.relative_to(self._folder))
                if name.endswith(".tmp"):
                    self._tally.temporary.add(f"{self._folder.name}/{name}")
                    continue
                status = path.stat()
                if stat.S_ISDIR(status.st_mode) or seen.get(path) == (now := _version(status)):
                    continue
                seen[path] = now
                if path.read_bytes() != self._wanted.get(name):
                    self._tally.half.add(f"{self._folder.name}/{name}")


def _version(status: os.stat_result) -> tuple[int, int, int]:
    """What changes with every file that is put in another's place, and with every byte that is added to it."""
    return status.st_ino, status.st_size, status.st_mtime_ns
