"""Fixtures: the corpora beside the project, and a real server process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from align_client import AlignError, Client

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """Start a server on that socket; by default wait until it serves."""
    with socket.with_name("server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "align_server", "run", "--socket", str(socket), *flags],
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


@pytest.fixture
def room() -> Iterator[Path]:
    """A private folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server that the whole run shares. Tests that stop or crash one launch their own."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        running = launch(Path(folder) / "align.sock")
        yield running
        running.stop()


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The recordings and transcripts beside the project; the test is skipped where they are not."""
    if not CORPORA.is_dir():
        pytest.skip("needs the recordings and transcripts of ../shared/data, which are not here")
    return CORPORA


@pytest.fixture(scope="session")
def examples() -> Path:
    """The project's own conversations."""
    return PROJECT / "examples"


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test must never reach the server of whoever runs it."""
    for name in ("ALIGN_SERVER", "ALIGN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
