"""Processes under measurement: a server, crews of workers that take turns, and commands; their CPU and memory.

Knows nothing of what they compute.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from align_client import AlignError, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from types import TracebackType

START_S = 120.0
SAMPLE_S = 0.02
MB = 2**20


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running align-server; `starting` is the most memory, in bytes, that it was seen to have until it served."""

    address: str
    process: psutil.Process
    starting: int

    def cpu_s(self) -> float:
        """User and system time so far, of all its threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def server(
    *flags: str, program: Sequence[str] = ("-m", "align_server"), settings: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server of its own on a socket in a private folder, ready to serve, as `launch` starts it."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        running = launch(Path(folder), *flags, program=program, settings=settings)
        try:
            yield running
        finally:
            running.process.terminate()
            running.process.wait(timeout=60)


def launch(
    folder: Path,
    *flags: str,
    program: Sequence[str] = ("-m", "align_server"),
    settings: Mapping[str, str] | None = None,
) -> ServerProcess:
    """Start a server on a socket in that folder, closed to others, and wait until it serves. Whoever starts it ends it.

    It learns in that folder too, so that no run depends on another or on the user's own server, and keeps no results
    unless told to: what is sent again is computed again. `program` is what
    Python runs; `settings` go to its environment.
    """
    path = folder / "align.sock"
    log = folder / "server.log"
    command = [sys.executable, *program, "run", "--socket", str(path), "--cache", "0", *flags]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder), **(settings or {})}
    with log.open("ab") as output:
        process = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        with watched(process) as most:
            _wait_until_serving(process, f"unix:{path}", log)
            starting = most()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return ServerProcess(f"unix:{path}", process, starting)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> int:
    """Processors that a process may run on: a server has as many lanes."""
    return len(os.sched_getaffinity(0))


def batch_s(client: Client) -> float:
    """How long a full batch of the server's first model takes on one lane."""
    model = client.models()[0]
    return model.batch_s / (model.rate / cores())


def _wait_until_serving(process: psutil.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    with Client(address) as client:
        while True:
            with contextlib.suppress(AlignError):
                if client.is_serving():
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; its log:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.1)


@contextlib.contextmanager
def watched(process: psutil.Process) -> Iterator[Callable[[], int]]:
    """Look at a process's memory all the time; gives what tells the most that was seen, in bytes."""
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(SAMPLE_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of a crew took, from the first start to the last end, and what each worker answered."""

    wall_s: float
    cpu_s: float
    answers: list[Any]


class Crew:
    """Worker processes that have loaded what they need and work when told to, all at once. Use as `with`.

    `make` is called in each process with that worker's arguments; what it returns is called for each turn.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], arguments: Sequence[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for given in arguments:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, make, given), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=30)

    def peaks(self) -> list[int]:
        """The most memory that each had so far, in bytes."""
        return [peak_rss(process.pid or 0) for process in self._processes]

    def turn(self) -> Turn:
        """Let every worker work once, and wait for them."""
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(None)
        done = [pipe.recv() for pipe in self._pipes]
        return Turn(time.perf_counter() - started, sum(cpu for cpu, _ in done), [answer for _, answer in done])


def _work(pipe: Connection, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    work = make(*arguments)
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            before = time.process_time()
            answer = work()
            pipe.send((time.process_time() - before, answer))


@dataclass(slots=True)
class Finished:
    """A command that ran to its end. Memory is resident, in bytes."""

    status: int
    wall_s: float
    peak: int
    rss: list[tuple[float, int]]  # seconds since the start, bytes
    errors: str


def run_together(commands: Sequence[Sequence[str]]) -> list[Finished]:
    """Run commands at the same time and watch their memory."""
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in commands]
        started = time.perf_counter()
        running = {
            number: psutil.Popen(list(command), stdout=subprocess.DEVNULL, stderr=output)
            for number, (command, output) in enumerate(zip(commands, outputs, strict=True))
        }
        finished = [Finished(0, 0.0, 0, [], "") for _ in commands]
        while running:
            time.sleep(SAMPLE_S)
            for number, process in list(running.items()):
                into = finished[number]
                elapsed = time.perf_counter() - started
                if (status := process.poll()) is not None:
                    into.status, into.wall_s = status, elapsed
                    outputs[number].seek(0)
                    into.errors = outputs[number].read()
                    del running[number]
                    continue
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                    into.rss.append((elapsed, process.memory_info().rss))
                    into.peak = max(into.peak, into.rss[-1][1], peak_rss(process.pid))
        return finished


def run(*command: str) -> Finished:
    """Run one command and watch its memory."""
    return run_together([command])[0]


def client_command(*arguments: str) -> list[str]:
    """The command line of align-client, in this environment."""
    return [sys.executable, "-m", "align_client", *arguments]


def peak_rss(pid: int) -> int:
    """The most memory that a process had since it started its program; 0 where the system does not say.

    Of a server that is since it last measured its batches, for which it begins anew.
    """
    # getrusage would count what the process that started it had.
    status = Path(f"/proc/{pid}/status")
    found = (
        re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if os.name == "posix" and status.exists()
        else None
    )
    return int(found[1]) * 1024 if found else 0
