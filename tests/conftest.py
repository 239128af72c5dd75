"""Fixtures: the corpora beside the project, and a real server process."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import CORPORA, PROJECT, ServerProcess, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_server.engines.sphinx.engine import SphinxEngine


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What servers learn about this machine is kept for the run alone."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


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
def whisper() -> Iterator[ServerProcess]:
    """A server with OpenAI's tiny.en beside the embedded model, which is its default. None of its tests stops it."""
    import whispers

    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        model = f"whisper:{whispers.tiny_en()}"
        running = launch(Path(folder) / "align.sock", "--model", "sphinx-en-us", "--model", model)
        yield running
        running.stop()


@pytest.fixture(scope="session")
def engine() -> Iterator[SphinxEngine]:
    """The embedded engine, loaded once; one torch thread, as in the server, where each lane is a thread of its own."""
    import torch

    from align_server.engines.sphinx.engine import SphinxEngine

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = SphinxEngine()
    loaded.load()
    yield loaded
    torch.set_num_threads(before)


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


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
