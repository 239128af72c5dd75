"""Clients and servers that are killed at work: the others go on, and a restarted server is found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from align_client import Client
from support import launch, wait_until_serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import ServerProcess

COPIES = 8  # of the example conversation in one long transcript


@pytest.fixture(scope="module")
def long_talk(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with several transcripts of some minutes each, made by repeating an example."""
    folder = tmp_path_factory.mktemp("long")
    samples, rate = soundfile.read(examples / "play.flac", dtype="int16")
    lines = (examples / "play.cha").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("*"))
    head, body = lines[:first], [line for line in lines[first:] if line != "@End"]
    step_ms = len(samples) * 1000 // rate
    talk = [shifted(line, copy * step_ms) for copy in range(COPIES) for line in body]
    for name in "abc":
        text = "\n".join([*head, *talk, "@End", ""]).replace("play, audio", f"{name}, audio")
        (folder / f"{name}.cha").write_text(text, encoding="utf-8")
        soundfile.write(folder / f"{name}.flac", np.tile(samples[: step_ms * rate // 1000], COPIES), rate)
    return folder


def shifted(line: str, by_ms: int) -> str:
    parts = line.split("\x15")
    for i in range(1, len(parts), 2):
        parts[i] = "_".join(str(int(time_ms) + by_ms) for time_ms in parts[i].split("_"))
    return "\x15".join(parts)


@pytest.fixture
def own_server(room: Path) -> Iterator[ServerProcess]:
    """A server that the test may kill, and start again on the same socket."""
    running = launch(room / "align.sock")
    yield running
    running.stop()


def client(folder: Path, out: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "align_client", "align", str(folder), "-o", str(out), "--jobs", "2"],
        env={**os.environ, "ALIGN_SERVER": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    return said


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(long_talk: Path, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nobody disturbs writes."""
    out = tmp_path_factory.mktemp("undisturbed")
    finished(client(long_talk, out, server.address))
    found = outputs(out)
    assert all(data.count(b"%wor") > 50 for data in found.values())
    return found


def wait_until_busy(address: str) -> None:
    """Until the server has done some of the work and holds more."""
    deadline = time.monotonic() + 60
    with Client(address) as asking:
        while time.monotonic() < deadline:
            info = asking.info()
            if info.segments_done and info.clients and (info.queued_s or info.computing_s):
                return
            time.sleep(0.01)
    raise AssertionError("the server was never busy")


def test_a_killed_client_costs_nobody_else_anything(
    own_server: ServerProcess, long_talk: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    victim = client(long_talk, tmp_path / "victim", own_server.address)
    neighbour = client(long_talk, tmp_path / "neighbour", own_server.address)
    wait_until_busy(own_server.address)
    victim.kill()
    victim.communicate()
    finished(neighbour)
    assert outputs(tmp_path / "neighbour") == undisturbed
    assert not list(tmp_path.rglob("*.tmp"))
    with Client(own_server.address) as asking:
        deadline = time.monotonic() + 10
        while (info := asking.info()).clients or info.queued_s or info.granted_s:
            assert time.monotonic() < deadline, info
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_clients_of_a_restarted_server_go_on_by_themselves(
    own_server: ServerProcess, long_talk: Path, undisturbed: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    running = [client(long_talk, tmp_path / name, own_server.address) for name in ("one", "two")]
    wait_until_busy(own_server.address)
    own_server.stop(number)
    again = launch(own_server.socket)
    try:
        for process in running:
            finished(process)
        assert outputs(tmp_path / "one") == outputs(tmp_path / "two") == undisturbed
    finally:
        again.stop()


def test_sigterm_answers_what_was_sent_before_it_ends(
    own_server: ServerProcess, long_talk: Path, tmp_path: Path
) -> None:
    process = client(long_talk, tmp_path / "out", own_server.address)
    wait_until_busy(own_server.address)
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.process.wait(60) == -signal.SIGTERM
    assert "stopped" in own_server.log
    assert not own_server.socket.exists()
    process.terminate()
    process.communicate()


def test_a_socket_left_by_a_killed_server_is_no_obstacle(own_server: ServerProcess) -> None:
    own_server.stop(signal.SIGKILL)
    assert own_server.socket.exists()
    again = launch(own_server.socket, wait=False)
    try:
        wait_until_serving(again)
    finally:
        again.stop()


def test_clients_that_give_up_at_once_leave_nothing_behind(
    own_server: ServerProcess, long_talk: Path, tmp_path: Path
) -> None:
    with Client(own_server.address) as asking:
        for i in range(5):
            process = client(long_talk, tmp_path / str(i), own_server.address)
            time.sleep(0.7 + 0.1 * i)
            process.kill()
            process.communicate()
        deadline = time.monotonic() + 10
        while (info := asking.info()).clients or info.queued_s or info.computing_s or info.granted_s:
            assert time.monotonic() < deadline, info
            time.sleep(0.05)
