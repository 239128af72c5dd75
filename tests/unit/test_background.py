"""Starting a server in the background waits as long as it has news, and tells of downloads."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

import pytest

from align_client.sdk.errors import ServerUnavailable
from align_server import background
from align_server.config import Config

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 0.4


class Starting:
    """A server that serves after `seconds`, and until then is at the next of its words every 50 ms."""

    def __init__(self, seconds: float, what: str, *, stalls: bool = False) -> None:
        self.begin = time.monotonic()
        self.seconds, self.what, self.stalls = seconds, what, stalls

    def __call__(self, _address: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def is_serving(self) -> bool:
        if time.monotonic() - self.begin < 0.1:
            raise ServerUnavailable("not bound yet")
        return time.monotonic() - self.begin > self.seconds

    def models(self) -> list[SimpleNamespace]:
        step = 0 if self.stalls else int((time.monotonic() - self.begin) / 0.05)
        return [
            SimpleNamespace(name="ctc:a/b", state="loading", detail=f"{self.what} x ({step} of 99 MB), {step}%"),
            SimpleNamespace(name="sphinx-en-us", state="serving", detail=""),
        ]


def started(monkeypatch: pytest.MonkeyPatch, room: Path, server: Starting) -> list[str]:
    """What is told while that server starts."""
    monkeypatch.setattr(background, "Client", server)
    monkeypatch.setattr(background, "TELL_S", 0.3)
    told: list[str] = []
    background._wait_until_serving(Config(socket=room / "align.sock"), None, TIMEOUT_S, told.append)
    return told


def test_a_download_is_waited_for_while_it_goes_on_and_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, room: Path
) -> None:
    told = started(monkeypatch, room, Starting(3 * TIMEOUT_S, "downloading"))
    assert 2 <= len(told) <= 4
    assert all(line.startswith("ctc:a/b: downloading x (") for line in told)
    assert len(set(told)) == len(told)


def test_one_that_stalls_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    with pytest.raises(background.BackgroundError, match=r"nothing has changed for 0\.4 s; look at .*\.log"):
        started(monkeypatch, room, Starting(60, "downloading", stalls=True))


def test_what_is_on_this_machine_is_loaded_in_silence(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    assert started(monkeypatch, room, Starting(2 * TIMEOUT_S, "reading the weights")) == []
