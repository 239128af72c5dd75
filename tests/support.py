"""A real server process for tests, and where things are."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from align_client import AlignError, Client

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = Path(__file__).resolve().parent.parent
CORPORA = PROJECT.parent / "shared" / "data"
START_S = 120.0


@dataclass
class ServerProcess:
    """One `align-server run`, as a process of its own."""

    process: subprocess.Popen[bytes]
    socket: Path

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @property
    def log(self) -> str:
        return self.socket.with_name("server.log").read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


def launch(socket: Path, *flags: str, wait: bool = True) -> ServerProcess:
    """Start a server on that socket; by default wait until it serves.

    It computes everything, unless --cache is given.
    """
    cache = () if "--cache" in flags else ("--cache", "0")
    with socket.with_name("server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "align_server", "run", "--socket", str(socket), *cache, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = ServerProcess(process, socket)
    if wait:
        wait_until_serving(server)
    return server


def wait_until_serving(server: ServerProcess) -> None:
    """Poll the health check; fail with the log where the process ends."""
    deadline = time.monotonic() + START_S
    with Client(server.address) as client:
        while True:
            with contextlib.suppress(AlignError):
                if client.is_serving():
                    return
            assert server.process.poll() is None, server.log
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)


class Scrape:
    """What a metrics page says now."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            text = page.read().decode()
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name that have these labels; 0 where there are none."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def labels(self, name: str, label: str) -> set[str]:
        """What that label is in the samples of that name."""
        return {s.labels[label] for s in self.samples if s.name == name}


def eventually(is_so: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until it is so; fail where it does not become so in time."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.02)
