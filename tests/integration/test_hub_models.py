"""A real server serves models of a hub by their ids: they are downloaded once, in the sight of all, beside others."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_client import Client
from align_client.sdk.errors import ModelUnavailable
from checkpoints import write_adapted, write_checkpoint
from hub_server import HubServer
from support import ServerProcess, eventually, launch
from whispers import write_whisper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_client import ModelInfo

RATE = 16_000
MB = 1_000_000
SPHINX, GERMAN, HEARS, NONE = "sphinx-en-us", "ctc:lab/german", "whisper:lab/hears", "ctc:lab/none"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """Has a CTC model of some MB and a small Whisper."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder, HubServer() as server:
        server.commit = server.add("lab/german", write_checkpoint(Path(folder) / "ctc", hidden=256, layers=4, heads=4))
        # As large as published ones, in time and tokens, since the server measures them with such.
        hears = write_whisper(Path(folder) / "whisper", max_source_positions=1500, max_target_positions=448)
        server.add("lab/hears", hears)
        yield server


@pytest.fixture
def cache(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, which servers of this test use."""
    for name, value in hub.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    hub.asked.clear()
    hub.faults.rate = 0.0
    return tmp_path / "cache"


def flags(*models: str) -> list[str]:
    return [word for name in models for word in ("--model", name)]


def cli(socket: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "align_server", *words, "--socket", str(socket)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def model(server: ServerProcess, name: str) -> ModelInfo:
    with Client(server.address) as client:
        return next(row for row in client.models() if row.name == name)


def is_listening(server: ServerProcess) -> bool:
    assert server.process.poll() is None, server.log
    return server.socket.exists()


def is_aligned(server: ServerProcess, name: str) -> bool:
    audio = np.random.default_rng(0).normal(0, 2000, RATE).astype(np.int16)
    with Client(server.address, timeout=60) as client:
        return client.align(audio, ["hello"], sample_rate=RATE, model=name).words[0].reason is None


@pytest.mark.usefixtures("cache")
def test_models_are_downloaded_beside_those_that_serve_and_need_no_hub_thereafter(
    hub: HubServer, room: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    hub.faults.rate = 1 * MB
    hub.faults.cut_after[WEIGHTS] = [3 * MB]
    first = launch(room / "align.sock", *flags(SPHINX, GERMAN, HEARS, NONE), wait=False)
    try:
        eventually(lambda: is_listening(first) and "downloading" in model(first, GERMAN).detail, 60)
        assert is_aligned(first, SPHINX)
        with Client(first.address) as client:
            assert not client.is_serving()
        shown = " ".join(cli(first.socket, "status").stdout.split())
        assert f"{GERMAN} (loading): downloading {WEIGHTS} (" in shown
        size = len(hub.commits["lab/german", hub.commit][WEIGHTS])
        assert f"of {size / 1e6:.0f} MB)" in shown
        seen = model(first, GERMAN).detail
        eventually(lambda: model(first, GERMAN).detail != seen)
        hub.faults.rate = 0.0
        eventually(lambda: model(first, GERMAN).state == "serving")
        assert is_aligned(first, GERMAN)
        assert is_aligned(first, HEARS)
        assert model(first, HEARS).transcribes
        assert f"from the hub at commit {hub.commit}" in model(first, GERMAN).detail
        assert model(first, GERMAN).size_bytes == size
        assert f"commit {hub.commit}" in first.log
        assert max(hub.loaded(WEIGHTS)) > 2 * MB  # after the cut
        with pytest.raises(ModelUnavailable, match="there is no model lab/none at"):
            is_aligned(first, NONE)
        revision = model(first, GERMAN).revision
    finally:
        first.stop()
    assert "Traceback" not in first.log
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port}")  # where nobody answers
    second = launch(room / "align.sock", *flags(GERMAN, HEARS))
    try:
        assert is_aligned(second, GERMAN)
        assert model(second, GERMAN).revision == revision
        assert "model from the cache" in second.log
        assert f"{GERMAN} " in cli(second.socket, "models").stdout
    finally:
        second.stop()


def test_a_server_that_is_stopped_leaves_its_download_to_the_next_and_starting_in_the_background_tells_of_it(
    hub: HubServer, cache: Path, room: Path
) -> None:
    hub.faults.rate = 2 * MB
    first = launch(room / "align.sock", *flags(GERMAN), wait=False)
    eventually(lambda: is_listening(first) and "downloading" in model(first, GERMAN).detail, 60)
    begun = time.monotonic()
    assert first.stop() == -signal.SIGTERM
    assert time.monotonic() - begun < 10  # of the 7 s and more that were left, and of what it takes to stop
    assert "stopped" in first.log
    assert "Traceback" not in first.log
    started = cli(room / "align.sock", "start", *flags(GERMAN))
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.strip() == f"unix:{room}/align.sock"
        assert f"{GERMAN}: downloading {WEIGHTS} (" in started.stderr
        assert [begin > 0 for begin in hub.loaded(WEIGHTS)] == [False, True]
        assert (cache / "models--lab--german" / "refs" / "main").read_text() == hub.commit
    finally:
        assert cli(room / "align.sock", "stop").returncode == 0


@pytest.mark.usefixtures("cache")
def test_unloading_ends_a_download_and_loading_goes_on_with_it(hub: HubServer, room: Path) -> None:
    hub.faults.rate = 1 * MB
    server = launch(room / "align.sock", *flags(SPHINX, GERMAN), wait=False)
    try:
        eventually(lambda: is_listening(server) and "downloading" in model(server, GERMAN).detail, 60)
        assert cli(server.socket, "unload", GERMAN).returncode == 0
        assert model(server, GERMAN).state == "available"
        hub.faults.rate = 0.0
        assert cli(server.socket, "load", GERMAN).returncode == 0
        assert is_aligned(server, GERMAN)
        assert hub.loaded(WEIGHTS)[-1] > 0
    finally:
        server.stop()
    assert "Traceback" not in server.log


@pytest.mark.usefixtures("cache")
def test_a_model_with_adapters_aligns_in_the_languages_that_its_id_names(hub: HubServer, room: Path) -> None:
    many = "ctc:lab/many#rus,fra"
    letters = {"eng": "abcdefghijklmnopqrstuvwxyz", "fra": "abcdefghijklmnopqrstuvwxyzé", "rus": "вдеипрту"}
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        hub.add("lab/many", write_adapted(Path(folder) / "many", letters))
    audio = np.random.default_rng(0).normal(0, 2000, RATE).astype(np.int16)
    server = launch(room / "align.sock", *flags(SPHINX, many, "ctc:lab/many"))
    try:
        assert set(model(server, many).languages) == {"fra", "rus"}
        with Client(server.address, timeout=60, model=many) as client:
            for language, word in (("rus", "привет"), ("fra", "été")):
                assert client.align(audio, [word], sample_rate=RATE, language=language).words[0].reason is None
            unknown = client.align(audio, ["hello"], sample_rate=RATE, language="eng").words[0]
        assert unknown.reason is not None
        assert "for which the model has no adapter" in unknown.detail
        assert "say which are wanted: lab/many#eng" in model(server, "ctc:lab/many").detail
        loaded = [name for name in letters if hub.loaded(f"adapter.{name}.safetensors")]
        assert loaded == ["fra", "rus"]
    finally:
        server.stop()
    assert "Traceback" not in server.log


def test_a_server_with_nothing_but_a_model_that_cannot_be_had_says_why_it_does_not_start(
    hub: HubServer, cache: Path, room: Path
) -> None:
    refused = launch(room / "align.sock", *flags(NONE), wait=False)
    assert refused.process.wait(60) == 1
    assert f"there is no model lab/none at {hub.url}" in refused.log
    assert not list(cache.glob("*/blobs/*"))
