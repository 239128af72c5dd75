"""A real server process, spoken to over its real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from align_client import AsyncClient, Client, MissingReason, Word, WordKind
from align_client.sdk.errors import (
    AccessDenied,
    RequestRefused,
    ServerUnavailable,
    UnknownModel,
    VersionMismatch,
    detail,
)
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from align_server.service import SERVICE
from support import launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support import ServerProcess

RATE = 16_000
NEWER = """
from align_proto.v1 import align_pb2 as pb, align_pb2_grpc as rpc
class Newer(rpc.AlignServiceServicer):
    def GetServerInfo(self, request, context):
        return pb.GetServerInfoResponse(version='9.0', protocol_revision=99)
rpc.add_AlignServiceServicer_to_server(Newer(), server)
"""


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2000, int(seconds * RATE)).astype(np.int16)


def segment(seconds: float = 1.0, name: str = "1") -> pb.Segment:
    return pb.Segment(id=name, pcm=noise(seconds).tobytes(), words=[pb.Word(text="hello"), pb.Word(text="world")])


@pytest.fixture
async def stub(server: ServerProcess) -> AsyncIterator[AlignServiceStub]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield AlignServiceStub(channel)


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


class TestStandardServices:
    async def test_health_has_an_entry_for_the_server_and_for_each_model(self, server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "sphinx-en-us"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            error = await refusal(health.Check(health_pb2.HealthCheckRequest(service="no-such-model")))
            assert error.code() is grpc.StatusCode.NOT_FOUND

    async def test_reflection_lists_the_service(self, server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {"align_proto.v1.AlignService", "grpc.health.v1.Health"} <= names
            call.cancel()


class TestAlign:
    def test_every_word_gets_a_time_or_a_reason_in_the_order_given(self, server: ServerProcess) -> None:
        words = [
            Word("hello"),
            Word("привет"),
            Word("", kind=WordKind.UNKNOWN_SOUND),
            Word("hola", "spa"),
            Word("world"),
        ]
        with Client(server.address) as client:
            result = client.align(noise(3), words, sample_rate=RATE)
        assert result.model == "sphinx-en-us"
        assert [word.text for word in result.words] == ["hello", "привет", "", "hola", "world"]
        assert [word.reason for word in result.words] == [
            None,
            MissingReason.UNPRONOUNCEABLE,
            None,
            MissingReason.UNSUPPORTED_LANGUAGE,
            None,
        ]
        assert "привет" in result.words[1].why
        for word in (result.words[0], result.words[4]):
            assert word.start is not None
            assert word.end is not None
            assert 0 <= word.start < word.end <= 3
            assert 0 <= word.score <= 1

    def test_words_that_need_more_time_than_there_is_say_so(self, server: ServerProcess) -> None:
        with Client(server.address) as client:
            result = client.align(noise(0.05), ["constitutional", "monarchy"], sample_rate=RATE)
        assert {word.reason for word in result.words} == {MissingReason.AUDIO_TOO_SHORT}

    def test_digital_silence_has_no_speech(self, server: ServerProcess) -> None:
        with Client(server.address) as client:
            result = client.align(np.zeros(RATE, np.int16), ["hello"], sample_rate=RATE)
        assert result.words[0].reason is MissingReason.NO_SPEECH

    @pytest.mark.parametrize(
        ("message", "field"),
        [
            (pb.Segment(words=[pb.Word(text="a")]), "segment.pcm"),
            (pb.Segment(pcm=b"\0", words=[pb.Word(text="a")]), "segment.pcm"),
            (pb.Segment(pcm=b"\0\0"), "segment.words"),
            (pb.Segment(pcm=b"\0\0", words=[pb.Word(text="a"), pb.Word(text=" ")]), "segment.words[1].text"),
            (pb.Segment(pcm=b"\0\0", words=[pb.Word(text="a", kind=99)]), "segment.words[0].kind"),  # type: ignore[arg-type]
            (pb.Segment(pcm=b"\0\0", words=[pb.Word(text="a")] * 5000), "segment.words"),
            (pb.Segment(pcm=b"\1\0" * RATE * 121, words=[pb.Word(text="a")]), "segment.pcm"),
        ],
    )
    async def test_a_field_that_cannot_be_used_is_named(
        self, stub: AlignServiceStub, message: pb.Segment, field: str
    ) -> None:
        error = await refusal(stub.Align(pb.AlignRequest(segment=message)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        bad = detail(error, error_details_pb2.BadRequest)
        assert bad is not None
        assert [violation.field for violation in bad.field_violations] == [field]

    async def test_an_unknown_model_is_not_found(self, stub: AlignServiceStub, server: ServerProcess) -> None:
        error = await refusal(stub.Align(pb.AlignRequest(model="nope", segment=segment())))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        with Client(server.address, model="nope") as client, pytest.raises(UnknownModel, match="sphinx-en-us"):
            client.align(noise(1), ["hello"], sample_rate=RATE)

    def test_a_segment_longer_than_the_server_takes_is_refused_in_words(self, server: ServerProcess) -> None:
        with Client(server.address) as client, pytest.raises(RequestRefused, match="120000 ms"):
            client.align(noise(130), ["hello"], sample_rate=RATE)

    def test_models_and_info_say_what_the_server_is(self, server: ServerProcess) -> None:
        with Client(server.address) as client:
            model = client.models()[0]
            info = client.info()
        assert (model.name, model.languages, model.state, model.is_default) == (
            "sphinx-en-us",
            ("eng",),
            "serving",
            True,
        )
        assert model.phones
        assert model.licence
        assert model.size_bytes > 5e6
        assert info.pid == server.process.pid
        assert info.memory_bytes > 1e8
        assert info.max_segment_s == 120


class TestAlignStream:
    async def test_credit_is_for_a_segment_first_and_for_a_window_once_the_stream_works(
        self, stub: AlignServiceStub
    ) -> None:
        call = stub.AlignStream()
        await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client="test")))
        assert (await call.read()).granted_ms == 15_000
        await call.write(pb.AlignStreamRequest(segments=[segment()]))
        granted = 0
        while granted <= 2 * 15_000:  # how much more, depends on how fast the server has found its model
            granted = max(granted, (await asyncio.wait_for(call.read(), 30)).granted_ms)
        call.cancel()

    async def test_credit_comes_first_and_results_in_any_order(self, stub: AlignServiceStub) -> None:
        call = stub.AlignStream()
        await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client="test")))
        first = await call.read()
        assert first.granted_ms > 0
        assert not first.results
        for name in "abc":
            await call.write(pb.AlignStreamRequest(segments=[segment(name=name)]))
        await call.done_writing()
        results = []
        while message := await call.read():
            results += [result.id for result in message.results]
        assert sorted(results) == ["a", "b", "c"]

    async def test_answers_of_a_busy_stream_share_messages_and_those_of_its_last_minute_wait_for_nothing(
        self, stub: AlignServiceStub
    ) -> None:
        call = stub.AlignStream()
        await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client="busy")))
        await call.write(pb.AlignStreamRequest(segments=[segment(name="first")]))
        granted_ms = 0
        while granted_ms < 31_000:
            granted_ms = max(granted_ms, (await asyncio.wait_for(call.read(), 30)).granted_ms)
        await call.write(pb.AlignStreamRequest(segments=[segment(0.5, name=str(i)) for i in range(60)]))
        sizes: list[int] = []
        while sum(sizes) < 60:  # the stream stays open: nothing but the answers themselves makes them leave
            message = await asyncio.wait_for(call.read(), 30)
            sizes += [len(message.results)] if message.results else []
        assert max(sizes) > 1
        assert len(sizes) < 60
        call.cancel()

    def test_sending_beyond_the_credit_ends_the_stream(self, server: ServerProcess) -> None:
        opening = pb.AlignStreamRequest(open=pb.AlignStreamOpen())
        greedy = [opening, *(pb.AlignStreamRequest(segments=[segment(100)]) for _ in range(8))]
        # Not the asyncio API: a write that fails there hides the status that the server gave.
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            list(AlignServiceStub(channel).AlignStream(iter(greedy)))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "credit" in (caught.value.details() or "")

    async def test_a_segment_that_cannot_be_used_is_refused_and_the_others_go_on(self, stub: AlignServiceStub) -> None:
        call = stub.AlignStream()
        await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen()))
        await call.write(pb.AlignStreamRequest(segments=[pb.Segment(id="bad", pcm=b"\0\0")]))
        await call.write(pb.AlignStreamRequest(segments=[segment(name="good")]))
        await call.done_writing()
        kinds: dict[str, str] = {}
        async for message in call:
            kinds |= {result.id: "result" for result in message.results}
            kinds |= {refusal.id: "refusal" for refusal in message.refusals}
        assert kinds == {"bad": "refusal", "good": "result"}

    async def test_a_stream_that_does_not_open_is_refused(self, stub: AlignServiceStub) -> None:
        call = stub.AlignStream()
        await call.write(pb.AlignStreamRequest(segments=[segment()]))
        error = await refusal(call.read())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_the_sdk_stream_carries_more_audio_than_any_credit(self, server: ServerProcess) -> None:
        async with AsyncClient(server.address) as client, client.stream() as stream:
            answers = [await stream.submit(noise(20, seed), [Word("hello")]) for seed in range(12)]
            results = await asyncio.gather(*answers)
        assert all(len(result) == 1 and result[0].reason is None for result in results)

    async def test_the_sdk_stream_sends_the_longest_segment_although_it_is_more_than_its_share(
        self, server: ServerProcess
    ) -> None:
        async with AsyncClient(server.address) as client, contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(client.stream()) for _ in range(8)]
            long = [await stream.submit(noise(119), [Word("hello")]) for stream in streams]
            results = await asyncio.wait_for(asyncio.gather(*long), 120)
        assert all(result[0].reason is None for result in results)


class TestLifecycle:
    def test_the_socket_and_its_folder_are_closed_to_others(self, server: ServerProcess) -> None:
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700

    def test_a_second_server_on_the_socket_refuses_and_the_first_goes_on(self, server: ServerProcess) -> None:
        second = launch(server.socket, wait=False)
        assert second.process.wait(60) == 1
        assert f"process {server.process.pid}" in server.log
        with Client(server.address) as client:
            assert client.is_serving()

    def test_a_folder_that_others_may_enter_is_refused(self, room: Path) -> None:
        room.chmod(0o755)
        refused = launch(room / "align.sock", wait=False)
        assert refused.process.wait(60) == 1
        assert "chmod 700" in refused.log

    def test_an_unknown_model_ends_the_start_with_what_there_is(self, room: Path) -> None:
        refused = launch(room / "align.sock", "--model", "nope", wait=False)
        assert refused.process.wait(60) == 1
        assert "sphinx-en-us" in refused.log
        assert not (room / "align.sock").exists()

    def test_start_status_models_and_stop(self, room: Path) -> None:
        def cli(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "align_server", *words, "--socket", str(room / "align.sock")]
            return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

        started = cli("start", "--cache", "0")
        try:
            assert started.returncode == 0, started.stderr
            assert started.stdout.strip() == f"unix:{room}/align.sock"
            again = cli("start")
            assert again.returncode == 0
            assert "already running" in again.stderr
            status = cli("status").stdout
            assert "serving" in status
            assert "MB resident" in status
            assert "BSD-2-Clause" in cli("models").stdout
        finally:
            stopped = cli("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert not (room / "align.sock").exists()
        assert cli("stop").returncode == 3
        assert cli("status").returncode == 3

    def test_tcp_needs_the_token(self, room: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(room))
        address = f"127.0.0.1:{free_port}"
        command = [sys.executable, "-m", "align_server", "start", "--listen", address]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2
        assert "ALIGN_TOKEN" in refused.stderr
        monkeypatch.setenv("ALIGN_TOKEN", "a secret")
        started = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        try:
            assert started.returncode == 0, started.stderr
            with Client(address) as client:
                assert client.align(noise(1), ["hello"], sample_rate=RATE).words[0].reason is None
            monkeypatch.setenv("ALIGN_TOKEN", "a guess")
            with Client(address) as client, pytest.raises(AccessDenied):
                client.info()
        finally:
            monkeypatch.setenv("ALIGN_TOKEN", "a secret")
            command[3] = "stop"
            assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def test_sigterm_ends_with_its_own_status(self, room: Path) -> None:
        running = launch(room / "align.sock")
        assert running.stop(signal.SIGTERM) == -signal.SIGTERM
        assert "stopped" in running.log
        assert not (room / "align.sock").exists()


class TestNoServer:
    def test_a_client_without_a_server_says_how_to_start_one(self, room: Path) -> None:
        with Client(f"unix:{room}/none.sock") as client, pytest.raises(ServerUnavailable, match="align-server start"):
            client.align(noise(1), ["hello"], sample_rate=RATE)

    @pytest.mark.parametrize(("service", "hint"), [("", "same version"), (NEWER, "chatalign 9.0, protocol 99")])
    def test_a_server_of_another_version_is_told_from_ours(
        self, room: Path, examples: Path, service: str, hint: str
    ) -> None:
        address = f"unix:{room}/other.sock"
        code = (
            "import grpc; from concurrent.futures import ThreadPoolExecutor\n"
            f"server = grpc.server(ThreadPoolExecutor(1)); server.add_insecure_port({address!r})\n{service}"
            "server.start(); print('ready', flush=True); server.wait_for_termination(120)"
        )
        align = [sys.executable, "-m", "align_client", "align", str(examples), "-o", str(room), "--server", address]
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
            try:
                assert other.stdout is not None
                assert other.stdout.readline() == b"ready\n"
                with Client(address) as client, pytest.raises(VersionMismatch, match=hint):
                    client.info()
                done = subprocess.run(align, capture_output=True, text=True, check=False, timeout=60)
                assert done.returncode == 3
                assert hint in done.stderr
            finally:
                other.kill()


async def test_a_call_without_a_message_is_told_so(server: ServerProcess) -> None:
    async def nothing() -> AsyncIterator[pb.AlignRequest]:
        for request in list[pb.AlignRequest]():
            yield request

    async with grpc.aio.insecure_channel(server.address) as channel:
        align = channel.stream_unary(
            f"/{SERVICE}/Align", pb.AlignRequest.SerializeToString, pb.AlignResponse.FromString
        )
        error = await refusal(align(nothing()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a message" in (error.details() or "")


def test_help_imports_neither_grpc_nor_torch() -> None:
    code = (
        "import sys, json\n"
        "from align_client.cli import main\n"
        "try: main(['align', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in ('grpc', 'torch', 'numpy', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
