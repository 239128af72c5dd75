"""A real server with work going through it, seen from outside: its metrics page, its log, its traces."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from align_client import AsyncClient, Client, Word
from align_client.sdk.errors import RequestRefused, UnknownModel
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from align_server.lock import owner
from support import Scrape, ServerProcess, eventually, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

RATE = 16_000
MODEL = "sphinx-en-us"
LIMIT = 4 * 2**30
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2000, int(seconds * RATE)).astype(np.int16)


def segment(seconds: float, name: str = "1") -> pb.Segment:
    return pb.Segment(id=name, pcm=noise(seconds).tobytes(), words=[pb.Word(text="hello"), pb.Word(text="world")])


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OpenTelemetry collector is to those who export to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request: Any, _context: object) -> Any:  # noqa: N802  named by OpenTelemetry
        with self._lock:
            for group in request.resource_spans:
                self.services |= {a.value.string_value for a in group.resource.attributes if a.key == "service.name"}
                self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def segments(self, client: str) -> list[Span]:
        """The spans of that client's segments, whose steps have come too."""
        found = [span for span in list(self.spans) if attributes(span).get("align.client", "").startswith(client)]
        return [span for span in found if {step.name for step in self.steps(span)} >= {"queue", "decode"}]

    def steps(self, span: Span) -> list[Span]:
        steps = [step for step in list(self.spans) if step.parent_span_id == span.span_id]
        return sorted(steps, key=lambda step: step.start_time_unix_nano)


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in span.attributes}


@dataclass
class Watched:
    """A server with everything on, and what is seen of it."""

    server: ServerProcess
    metrics: str
    collector: Collector
    read: int = field(default=0)

    def scrape(self) -> Scrape:
        return Scrape(self.metrics)

    def new_lines(self) -> list[str]:
        """What was logged since the last call."""
        text = self.server.log
        lines, self.read = text[self.read :].splitlines(), len(text)
        return lines


def a_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    collector = Collector()
    receiver = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)  # type: ignore[no-untyped-call]
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    metrics = f"127.0.0.1:{a_port()}"
    with tempfile.TemporaryDirectory(prefix="ca-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"127.0.0.1:{port}")
        patch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        server = launch(Path(folder) / "align.sock", "-v", "--metrics", metrics, "--memory-limit", "4G")
        yield Watched(server, metrics, collector)
        assert server.stop(signal.SIGTERM) == -signal.SIGTERM
        assert "Traceback" not in server.log
    receiver.stop(1).wait()


@pytest.fixture
async def stub(watched: Watched) -> AsyncIterator[AlignServiceStub]:
    async with grpc.aio.insecure_channel(watched.server.address) as channel:
        yield AlignServiceStub(channel)


async def opened(stub: AlignServiceStub, client: str, **rest: Any) -> Any:
    """A stream that has its first credit."""
    call = stub.AlignStream(**rest)
    await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client=client)))
    assert (await asyncio.wait_for(call.read(), 30)).granted_ms
    return call


async def results(call: Any, count: int) -> None:
    """Wait for that many results."""
    while count > 0:
        count -= len((await asyncio.wait_for(call.read(), 60)).results)


class TestMetrics:
    async def test_what_was_sent_is_what_is_counted(self, watched: Watched) -> None:
        before = watched.scrape()
        singles, bulk = [1.0, 2.5], [0.5, 1.0, 4.0, 7.25, 12.0]
        async with AsyncClient(watched.server.address) as client:
            for seconds in singles:
                await client.align(noise(seconds), ["hello"], sample_rate=RATE)
            async with client.stream() as stream:
                answers = [await stream.submit(noise(seconds), [Word("hello")]) for seconds in bulk]
                await asyncio.wait_for(asyncio.gather(*answers), 60)

        def grown(name: str, **labels: str) -> float:
            return watched.scrape()(f"align_{name}", **labels) - before(f"align_{name}", **labels)

        def is_decoded() -> bool:  # the last batch is booked after its results have left
            steps = grown("step_seconds_count", model=MODEL, step="decode")
            return steps == grown("batch_audio_seconds_count", model=MODEL) > 0

        await asyncio.to_thread(eventually, is_decoded)
        # A stream's segment is interactive while no other of it is out: the first one surely is.
        sent = [*singles, *bulk]
        assert grown("segments_total", model=MODEL, priority="interactive") > len(singles)
        assert grown("segments_total", model=MODEL) == len(sent)
        assert grown("audio_seconds_total", model=MODEL) == pytest.approx(sum(sent))
        assert grown("queue_wait_seconds_count", model=MODEL) == len(sent)
        padding = grown("padding_seconds_total", model=MODEL)
        assert grown("batch_audio_seconds_sum", model=MODEL) == pytest.approx(sum(singles) + sum(bulk) + padding)
        for step in ("prepare", "compute", "decode"):
            assert grown("step_seconds_count", step=step) == grown("batch_audio_seconds_count")
            assert grown("step_seconds_sum", step=step) > 0
        assert grown("request_seconds_count", outcome="answered") == len(singles)
        assert watched.scrape()("align_rate", model=MODEL) > 1

    async def test_an_open_stream_is_seen_by_its_client(self, watched: Watched, stub: AlignServiceStub) -> None:
        call = await opened(stub, "watcher")
        await call.write(pb.AlignStreamRequest(segments=[segment(3)]))
        await results(call, 1)
        await asyncio.to_thread(eventually, lambda: watched.scrape()("align_client_audio_seconds") == 3)
        seen = watched.scrape()
        (client,) = seen.labels("align_client_credit_audio_seconds", "client")
        assert re.fullmatch(r"watcher #\d+", client)
        assert seen("align_streams") == 1
        assert seen("align_client_credit_audio_seconds", client=client) == seen("align_granted_audio_seconds") > 0
        assert seen("align_client_unanswered_audio_seconds", client=client) == 0
        with Client(watched.server.address) as other:
            (load,) = (await asyncio.to_thread(other.info)).by_client
        assert (load.client, load.model, load.audio_done_s) == (client, MODEL, 3)
        call.cancel()
        await asyncio.to_thread(eventually, lambda: watched.scrape()("align_streams") == 0)
        assert not watched.scrape().labels("align_client_credit_audio_seconds", "client")

    async def test_nothing_is_held_when_streams_were_cancelled_over_their_work(
        self, watched: Watched, stub: AlignServiceStub
    ) -> None:
        for _ in range(5):
            call = await opened(stub, "fickle")
            for number in range(3):
                await call.write(pb.AlignStreamRequest(segments=[segment(5, str(number))]))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.to_thread(watched.scrape)
        await asyncio.to_thread(eventually, lambda: watched.scrape()("align_computing_audio_seconds") == 0)
        seen = watched.scrape()
        for name in ("streams", "held_audio_seconds", "granted_audio_seconds", "queued_audio_seconds"):
            assert seen(f"align_{name}") == 0

    async def test_each_refusal_is_counted_once_by_its_reason(self, watched: Watched, stub: AlignServiceStub) -> None:
        before = watched.scrape()
        async with AsyncClient(watched.server.address) as client:
            with pytest.raises(RequestRefused):
                await client.align(noise(1), [""], sample_rate=RATE)
            with pytest.raises(UnknownModel):
                await client.align(noise(1), ["hello"], sample_rate=RATE, model="nope")
        call = await opened(stub, "mistaken")
        await call.write(pb.AlignStreamRequest(segments=[pb.Segment(id="1", pcm=b"\0\0")]))
        while not (await asyncio.wait_for(call.read(), 30)).refusals:
            pass
        call.cancel()
        unknown = stub.AlignStream()
        await unknown.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(model="nope")))
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(unknown.read(), 30)
        after = watched.scrape()
        for reason in ("invalid", "unknown model"):
            name = "align_refusals_total"
            assert after(name, reason=reason) - before(name, reason=reason) == 2
        with Client(watched.server.address) as other:
            refused = (await asyncio.to_thread(other.info)).refused
        assert refused["invalid"] == after("align_refusals_total", reason="invalid")

    def test_memory_and_its_limit_are_told_and_the_model_is_in_it(self, watched: Watched) -> None:
        seen = watched.scrape()
        assert 1e8 < seen("align_memory_bytes") < LIMIT
        assert seen("align_memory_limit_bytes") == LIMIT
        assert seen("align_model_loaded", model=MODEL) == 1
        assert seen("align_batch_limit_bytes", model=MODEL) > 0
        assert seen("align_budget_audio_seconds") == 2400

    def test_a_metrics_port_in_use_ends_the_start_and_leaves_nothing_behind(self, watched: Watched, room: Path) -> None:
        refused = launch(room / "align.sock", "--metrics", watched.metrics, wait=False)
        assert refused.process.wait(60) == 1
        assert f"Error: cannot serve metrics on {watched.metrics}" in refused.log
        assert "Traceback" not in refused.log
        assert not (room / "align.sock").exists()
        assert owner(room / "align.sock.lock") is None


class TestLog:
    def test_verbose_logs_a_line_for_each_segment_and_each_batch(self, watched: Watched) -> None:
        watched.new_lines()
        with Client(watched.server.address) as client:
            client.align(noise(1.5), ["hello", "world"], sample_rate=RATE)
            client.align(noise(2), ["hello"], sample_rate=RATE)
        lines = watched.new_lines()
        segments = [line for line in lines if " segment " in line]
        batches = [line for line in lines if " batch " in line]
        assert len(segments) == len(batches) == 2
        for pair, audio_ms in zip(zip(segments, batches, strict=True), (1500, 2000), strict=True):
            assert all(f"audio_ms={audio_ms} " in line for line in pair)
        for line in segments:
            assert f"model={MODEL}" in line
            assert "outcome=answered" in line
            assert f":{os.getpid()}" in line
        for line in (*segments, *batches):
            (memory,) = re.findall(r"memory_mb=(\d+)", line)
            assert 100 < int(memory) < 4096

    def test_without_verbose_there_is_no_line_for_what_goes_well(self, server: ServerProcess) -> None:
        before = server.log
        with Client(server.address) as client:
            client.align(noise(1), ["hello"], sample_rate=RATE)
        assert server.log == before
        assert "debug" not in server.log


class TestTraces:
    async def test_a_single_call_is_a_span_in_its_callers_trace_with_the_steps_as_children(
        self, watched: Watched, stub: AlignServiceStub
    ) -> None:
        collector = watched.collector
        metadata = (("traceparent", TRACEPARENT), ("align-client", "traced"))
        await stub.Align(pb.AlignRequest(segment=segment(2)), metadata=metadata, timeout=30)
        await asyncio.to_thread(eventually, lambda: collector.segments("traced"))
        (span,) = collector.segments("traced")
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id.hex() == CALLER
        assert attributes(span) == {
            "align.model": MODEL,
            "align.client": "traced",
            "align.audio_ms": 2000,
            "align.words": 2,
            "align.priority": "interactive",
            "align.outcome": "answered",
        }
        steps = collector.steps(span)
        assert [step.name for step in steps] == ["queue", "prepare", "compute", "decode"]
        assert all(step.trace_id == span.trace_id for step in steps)
        assert steps[0].start_time_unix_nano == span.start_time_unix_nano
        assert steps[-1].end_time_unix_nano == span.end_time_unix_nano
        for step, following in itertools.pairwise(steps):
            assert step.start_time_unix_nano <= step.end_time_unix_nano == following.start_time_unix_nano
        assert collector.services == {"align-server"}

    async def test_the_segments_of_a_stream_are_spans_in_the_trace_that_it_was_opened_in(
        self, watched: Watched, stub: AlignServiceStub
    ) -> None:
        collector = watched.collector
        call = await opened(stub, "streaming", metadata=(("traceparent", TRACEPARENT),))
        for number in range(3):
            await call.write(pb.AlignStreamRequest(segments=[segment(1 + number, str(number))]))
        await call.done_writing()
        await results(call, 3)
        await asyncio.to_thread(eventually, lambda: len(collector.segments("streaming #")) == 3)
        spans = collector.segments("streaming #")
        assert {span.trace_id.hex() for span in spans} == {TRACE}
        assert {span.parent_span_id.hex() for span in spans} == {CALLER}
        assert sorted(attributes(span)["align.audio_ms"] for span in spans) == [1000, 2000, 3000]
        assert "interactive" in {attributes(span)["align.priority"] for span in spans} <= {"bulk", "interactive"}

    async def test_a_call_outside_any_trace_begins_one(self, watched: Watched, stub: AlignServiceStub) -> None:
        collector = watched.collector
        metadata = (("align-client", "alone"),)
        await stub.Align(pb.AlignRequest(segment=segment(1)), metadata=metadata, timeout=30)
        await asyncio.to_thread(eventually, lambda: collector.segments("alone"))
        (span,) = collector.segments("alone")
        assert not span.parent_span_id
        assert span.trace_id.hex() != TRACE

    def test_without_a_collector_nothing_of_opentelemetry_is_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith("OTEL_"):
                monkeypatch.delenv(name)
        code = (
            "import sys, align_server.server; from align_server.tracing import Tracer; tracer = Tracer(); "
            "print(tracer.is_on, [name for name in sys.modules if name.startswith('opentelemetry')])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == "False []"

    def test_a_collector_that_is_not_there_costs_no_answer_and_no_stop(
        self, room: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        with contextlib.ExitStack() as stack:
            server = launch(room / "align.sock")
            stack.callback(server.stop, signal.SIGKILL)
            with Client(server.address) as client:
                result = client.align(noise(1), ["hello"], sample_rate=RATE)
            assert result.words[0].reason is None
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == -signal.SIGTERM


class TestWatch:
    """`align-server status --watch` on a terminal."""

    def test_it_shows_what_is_open_and_ctrl_c_leaves_the_terminal_as_it_was(self, watched: Watched) -> None:
        with Terminal(watched.server) as terminal:
            terminal.wait_for("of at most 4096 MB")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(20) == 0
            assert terminal.is_restored

    def test_it_ends_with_the_server_and_says_so(self, room: Path) -> None:
        server = launch(room / "align.sock")
        with Terminal(server) as terminal:
            terminal.wait_for("MB resident")
            server.stop()
            assert terminal.process.wait(20) == 3
            assert terminal.is_restored
            assert "no server answers" in terminal.shown.partition(LEAVES_SCREEN)[2]


SHOWS_CURSOR, LEAVES_SCREEN = "\x1b[?25h", "\x1b[?1049l"


def _hears_ctrl_c() -> None:
    """As at a terminal: a run of the tests in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A terminal of 80 columns with `align-server status --watch` in it."""

    def __init__(self, server: ServerProcess) -> None:
        ours, theirs = pty.openpty()
        self._ours = ours
        command = [sys.executable, "-m", "align_server", "status", "--watch", "--socket", str(server.socket)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30"}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            preexec_fn=_hears_ctrl_c,  # noqa: PLW1509  it calls nothing that could be locked
        )
        os.close(theirs)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)

    @property
    def shown(self) -> str:
        return self._seen.decode(errors="replace")

    @property
    def is_restored(self) -> bool:
        self._reader.join(10)
        return SHOWS_CURSOR in self.shown and LEAVES_SCREEN in self.shown

    def wait_for(self, text: str) -> None:
        eventually(lambda: text in self.shown)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # as Linux says that the other end is closed
            while data := os.read(self._ours, 65536):
                self._seen += data
