"""Starting a server that outlives its terminal, and stopping it again.

Knows processes and the lock file; asks the server itself, over gRPC, whether it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from align_client import AlignError, Client
from align_server.lock import UnsafeFolderError, owner, private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align_server.config import Config

POLL_S = 0.1
TELL_S = 3.0  # between two lines on what is loaded
STOP_MARGIN_S = 15.0  # beyond the drain: for a batch that is being computed
LOG_LINES_SHOWN = 12


class BackgroundError(Exception):
    """The server did not start or stop; the message says what to look at."""


def start_in_background(
    config: Config, run_flags: Sequence[str], timeout_s: float, tell: Callable[[str], None]
) -> bool:
    """Start a server and wait until it serves; False where one already does. Raises BackgroundError.

    `timeout_s` is without any news of the models that it loads; `tell` is given what it downloads.
    """
    try:
        private_folder(config.lock_path.parent)
    except (UnsafeFolderError, OSError) as error:
        raise BackgroundError(str(error)) from error
    if owner(config.lock_path) is not None:
        _wait_until_serving(config, None, timeout_s, tell)
        return False
    with config.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "align_server", "run", *run_flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    _wait_until_serving(config, process, timeout_s, tell)
    return True


def stop_and_wait(config: Config) -> bool:
    """Ask the server to drain and wait until it has ended; False where none runs. Raises BackgroundError."""
    pid = owner(config.lock_path)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + config.drain_s + STOP_MARGIN_S
    while owner(config.lock_path) == pid:
        if time.monotonic() > deadline:
            raise BackgroundError(f"the server (process {pid}) still drains; look at {config.log_path}")
        time.sleep(POLL_S)
    return True


def _wait_until_serving(
    config: Config, process: subprocess.Popen[bytes] | None, timeout_s: float, tell: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + timeout_s
    seen: list[str] = []
    tell_at = 0.0
    with Client(config.address) as client:
        while True:
            if process is not None and process.poll() is not None:
                raise BackgroundError(f"the server ended with status {process.returncode}:\n{_last_lines(config)}")
            try:
                if client.is_serving():
                    return
                news = [f"{model.name}: {model.detail}" for model in client.models() if model.state == "loading"]
            except AlignError:
                news = []  # not bound yet; the deadline below bounds the wait
            now = time.monotonic()
            if news != seen:
                deadline = now + timeout_s
                if now > tell_at and (downloads := [line for line in news if ": downloading " in line]):
                    tell_at = now + TELL_S
                    tell("\n".join(downloads))
                seen = news
            if now > deadline:
                raise BackgroundError(
                    f"the server does not serve, and nothing has changed for {timeout_s:g} s; look at {config.log_path}"
                )
            time.sleep(POLL_S)


def _last_lines(config: Config) -> str:
    lines = config.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:])
