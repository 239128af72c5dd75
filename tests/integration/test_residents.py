"""Models of a real server: loaded and unloaded when told to, for want of use, and by those who need them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from align_client import AsyncClient, Client, Word
from align_client.sdk.errors import ModelUnavailable, RequestRefused
from checkpoints import write_checkpoint
from support import eventually, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import ServerProcess

RATE = 16_000
SPHINX = "sphinx-en-us"
MB = 2**20


def noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2000, int(seconds * RATE)).astype(np.int16)


def cli(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "align_server", *words, "--socket", str(server.socket)]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def state(server: ServerProcess, model: str) -> str:
    with Client(server.address) as client:
        return next(row.state for row in client.models() if row.name == model)


def is_aligned(server: ServerProcess, model: str) -> bool:
    with Client(server.address, timeout=60) as client:
        return client.align(noise(), ["hello"], sample_rate=RATE, model=model).words[0].reason is None


def loads(server: ServerProcess, model: str) -> int:
    return sum("model loaded" in line and f"model={model} " in line for line in server.log.splitlines())


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Path]:
    """28M random weights, 56 MB in bf16 and 112 in fp32: enough to be seen to come and go."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        yield write_checkpoint(Path(folder) / "ctc", hidden=512, layers=8, heads=8, channels=128)


@pytest.fixture(scope="module")
def ctc(checkpoint: Path) -> str:
    return f"ctc:{checkpoint}"


@pytest.fixture(scope="module")
def server(ctc: str) -> Iterator[ServerProcess]:
    """One that holds two models. Every test leaves both loaded."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        running = launch(Path(folder) / "align.sock", "--model", SPHINX, "--model", ctc)
        yield running
        running.stop()
        assert "Traceback" not in running.log


class TestOnDemand:
    def test_an_unloaded_model_gives_its_memory_back_and_is_loaded_again_for_whoever_needs_it(
        self, server: ServerProcess, ctc: str
    ) -> None:
        assert is_aligned(server, ctc)
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        done = cli(server, "unload", ctc)
        assert (done.returncode, done.stdout) == (0, f"{ctc} is unloaded\n")
        assert state(server, ctc) == "available"
        assert before - process.memory_info().rss > 40 * MB  # of 56 to 112, less what its pages share
        assert is_aligned(server, SPHINX)
        assert is_aligned(server, ctc)
        assert state(server, ctc) == "serving"
        assert loads(server, ctc) == 2

    def test_a_model_is_loaded_when_told_to_and_once_is_enough(self, server: ServerProcess, ctc: str) -> None:
        before = loads(server, ctc)
        assert cli(server, "unload", ctc).returncode == 0
        for _ in range(2):
            done = cli(server, "load", ctc)
            assert (done.returncode, done.stdout) == (0, f"{ctc} is loaded\n")
            assert state(server, ctc) == "serving"
        assert loads(server, ctc) == before + 1

    async def test_a_model_in_use_is_not_unloaded(self, server: ServerProcess) -> None:
        async with AsyncClient(server.address) as client, client.stream() as stream:
            await (await stream.submit(noise(), [Word("hello")]))
            refused = await asyncio.to_thread(cli, server, "unload", SPHINX)
            assert refused.returncode == 1
            assert f"model '{SPHINX}' is in use by a call or stream" in refused.stderr
            result = await (await stream.submit(noise(), [Word("hello")]))
        assert result[0].reason is None
        assert state(server, SPHINX) == "serving"

    async def test_a_model_without_phones_refuses_them_and_what_comes_without_goes_on(
        self, server: ServerProcess, ctc: str
    ) -> None:
        async with AsyncClient(server.address, model=ctc) as client:
            assert {row.name: row.phones for row in await client.models()} == {SPHINX: True, ctc: False}
            with pytest.raises(RequestRefused, match="has no phones; leave them out, or ask sphinx-en-us") as caught:
                await client.align(noise(), ["hello"], sample_rate=RATE, phones=True)
            assert caught.value.field == "segment.phones"
            async with client.stream() as stream:
                refused = await stream.submit(noise(), [Word("hello")], phones=True)
                taken = await stream.submit(noise(), [Word("hello")])
                assert "segment.phones: " in (await refused)[0].why
                assert (await taken)[0].reason is None

    def test_an_export_with_phones_takes_the_model_that_has_them(
        self, server: ServerProcess, ctc: str, tmp_path: Path
    ) -> None:
        (tmp_path / "a.cha").write_text("@Begin\n*CHI:\thello . \x150_900\x15\n@End\n")
        words = ["-m", "align_client", "export", str(tmp_path / "a.cha"), "--phones", "--format", "json"]
        words += ["--server", server.address, "-o", str(tmp_path / "out")]

        def export(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, *words, *more], capture_output=True, text=True, check=False)

        refused = export("--model", ctc)
        assert refused.returncode == 2
        assert "has no phones; sphinx-en-us has" in " ".join(refused.stderr.split())
        assert not (tmp_path / "out").exists()
        assert export().returncode == 0  # it has no word of %wor to ask for, and so needs no recording

    @pytest.mark.parametrize("command", ["load", "unload"])
    def test_a_model_that_is_not_served_here_is_named_with_those_that_are(
        self, server: ServerProcess, command: str
    ) -> None:
        refused = cli(server, command, "nope")
        assert refused.returncode == 1
        assert "'nope'" in refused.stderr
        assert SPHINX in refused.stderr

    async def test_requests_at_once_for_an_unloaded_model_wait_for_one_load(
        self, server: ServerProcess, ctc: str
    ) -> None:
        before = loads(server, ctc)
        async with AsyncClient(server.address, timeout=60, model=ctc) as client:
            await client.unload_model(ctc)
            calls = [client.align(noise(), ["hello"], sample_rate=RATE) for _ in range(8)]
            results = await asyncio.gather(*calls)
            async with client.stream() as stream:
                answer = await (await stream.submit(noise(), [Word("hello")]))
        assert all(result.words[0].reason is None for result in results)
        assert answer[0].reason is None
        assert loads(server, ctc) == before + 1

    async def test_who_gives_up_waiting_for_a_load_does_not_spoil_it_for_the_others(
        self, server: ServerProcess, ctc: str
    ) -> None:
        before = loads(server, ctc)
        async with AsyncClient(server.address, timeout=60, model=ctc) as client:
            await client.unload_model(ctc)
            hasty = asyncio.create_task(client.align(noise(), ["hello"], sample_rate=RATE))
            await asyncio.to_thread(eventually, lambda: state(server, ctc) != "available")
            patient = asyncio.create_task(client.align(noise(), ["hello"], sample_rate=RATE))
            hasty.cancel()
            assert (await patient).words[0].reason is None
        assert loads(server, ctc) == before + 1

    def test_no_server_is_told_from_a_refusal(self, room: Path) -> None:
        for command in ("load", "unload"):
            words = [sys.executable, "-m", "align_server", command, SPHINX, "--socket", str(room / "none.sock")]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 3
            assert "no server answers" in done.stderr


class TestWithoutUse:
    def test_a_model_that_nobody_uses_is_unloaded_and_a_later_request_has_it_again(self, room: Path) -> None:
        server = launch(room / "align.sock", "--idle-unload-s", "1")
        try:
            eventually(lambda: state(server, SPHINX) == "available")
            assert "model not used" in server.log
            with Client(server.address) as client:
                assert client.is_serving()  # it would be, for whoever asks
            assert is_aligned(server, SPHINX)
            assert state(server, SPHINX) == "serving"
            eventually(lambda: state(server, SPHINX) == "available")
            assert loads(server, SPHINX) == 2
        finally:
            server.stop()


class TestBroken:
    def test_a_model_that_cannot_be_loaded_leaves_the_others_serving_and_says_why(self, room: Path) -> None:
        broken = write_checkpoint(room / "broken")
        weights = broken / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        names = (SPHINX, f"ctc:{broken}", f"ctc:{room}/nowhere")
        server = launch(room / "align.sock", *(word for name in names for word in ("--model", name)))
        try:
            assert is_aligned(server, SPHINX)
            assert [state(server, name) for name in names] == ["serving", "failed", "failed"]
            for name, why in zip(names[1:], ("is damaged or cut off", "nowhere"), strict=True):
                with pytest.raises(ModelUnavailable, match=why):
                    is_aligned(server, name)
                refused = cli(server, "load", name)
                assert refused.returncode == 1
                assert why in refused.stderr
            shown = " ".join(cli(server, "status").stdout.split())
            assert f"{names[1]} (failed):" in shown
            assert "is damaged or cut off" in shown
            weights.write_bytes(whole)
            assert cli(server, "load", names[1]).returncode == 0
            assert is_aligned(server, names[1])
        finally:
            server.stop()

    def test_starting_warns_of_a_model_that_is_not_served(self, room: Path) -> None:
        words = ("--cache", "0", "--model", SPHINX, "--model", "ctc:nowhere", "--socket", str(room / "align.sock"))
        command = [sys.executable, "-m", "align_server"]
        started = subprocess.run(
            [*command, "start", *words], capture_output=True, text=True, timeout=120, check=False, cwd=room
        )
        try:
            assert started.returncode == 0, started.stderr
            assert f"Warning: ctc:{room}/nowhere is not served: " in started.stderr
            assert started.stdout.strip() == f"unix:{room}/align.sock"
        finally:
            stopped = subprocess.run([*command, "stop", *words[-2:]], capture_output=True, timeout=60, check=False)
        assert stopped.returncode == 0

    def test_a_server_none_of_whose_models_can_be_loaded_does_not_start(self, room: Path) -> None:
        refused = launch(room / "align.sock", "--model", f"ctc:{room}/nowhere", wait=False)
        assert refused.process.wait(60) == 1
        assert "Error: no model could be loaded" in refused.log
        assert f"{room}/nowhere" in refused.log
        assert not (room / "align.sock").exists()
