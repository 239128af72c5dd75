"""The gRPC edge: messages in, work to the scheduler, messages out.

With stream.py and wire.py the only place that knows messages; status codes are in errors.py. It computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from typing import TYPE_CHECKING

import grpc

from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceServicer, add_AlignServiceServicer_to_server
from align_server import __version__, wire
from align_server.errors import statuses
from align_server.locate import Locating
from align_server.scheduling.memory import allocated
from align_server.scheduling.work import DeadlineTooSoon, Invalid, Refusal, Unavailable, Work
from align_server.stream import Edge, Stream, deadline_of, received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from grpc.aio import ServicerContext

    from align_server.locate import LocateContext
    from align_server.metrics import Reading
    from align_server.scheduling.batcher import Batcher
    from align_server.scheduling.residents import Residents
    from align_server.stream import StreamContext

    AlignContext = ServicerContext[pb.AlignRequest, pb.AlignResponse]
    ModelsContext = ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse]
    InfoContext = ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse]
    LoadContext = ServicerContext[pb.LoadModelRequest, pb.LoadModelResponse]
    UnloadContext = ServicerContext[pb.UnloadModelRequest, pb.UnloadModelResponse]

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"].full_name
PROTOCOL_REVISION = 1
MAX_MESSAGE_BYTES = 16 * 2**20
CLIENT = "align-client"  # metadata: a name for the fair queue, such as a host and process id
ATTEMPT = "align-attempt"  # metadata: how often a call was refused before
AUDIO = "align-audio-ms"  # metadata: audio that the message will bring
MARGIN = 1.5  # on the guess of how long a call will take, where its deadline is checked


class AlignService(AlignServiceServicer):  # type: ignore[misc]  # the generated class has no types
    """Answers the calls of align.proto from the resident models."""

    def __init__(self, residents: Residents, edge: Edge, *, device: str) -> None:
        self._edge = edge
        self._residents = residents
        self._device = device
        self._streams: set[Stream] = set()
        self._numbers = itertools.count(1)
        self._started = time.monotonic()

    def drain(self) -> None:
        """Take no new work; streams end when what they were sent is answered."""
        self._edge.draining = True
        for stream in self._streams:
            stream.wake()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer the calls of a server.

        Align is declared as a stream of requests, which is the same on the wire: so its message, half a megabyte for
        15 s of audio, is read when the call asks for it and not before, and a call that is refused at once costs
        neither side that. The rest of it then stays within HTTP/2's window, with the client.
        """
        add_AlignServiceServicer_to_server(self, server)
        align = grpc.stream_unary_rpc_method_handler(
            self.Align, pb.AlignRequest.FromString, pb.AlignResponse.SerializeToString
        )
        server.add_registered_method_handlers(SERVICE, {"Align": align})

    @statuses
    async def Align(self, _requests: AsyncIterator[pb.AlignRequest], context: AlignContext) -> pb.AlignResponse:  # noqa: N802  named by the contract
        """Align or transcribe one segment."""
        arrived = time.monotonic()
        deadline = deadline_of(context)
        async with self._counted(arrived):
            given = _metadata(context)
            self._refuse_unread(given, deadline)
            request = await received(context)
            if request is None:
                raise Invalid("segment", "the call ended without a message")
            return await self._align(request, context, given, deadline)

    async def _align(
        self, request: pb.AlignRequest, context: AlignContext, given: dict[str, str], deadline: float | None
    ) -> pb.AlignResponse:
        async with self._lease(request.model) as batcher:
            segment = self._edge.segment(request.segment, request.segment.pcm, batcher)
            name, found = self._edge.find(segment, batcher)
            if found is not None:
                return _response(batcher, found)
            client = given.get(CLIENT) or context.peer()
            work = Work(segment, client, batcher.engine.cost(segment.duration_ms), interactive=True, deadline=deadline)
            _check_deadline(deadline, batcher.seconds_until_done(work.cost_ms))
            audio_ms = segment.duration_ms
            self._edge.admission.admit_unary(audio_ms, batcher.throughput.seconds_for, returning=_returns(given))
            try:
                batcher.put(work)
                result = await work.future
            finally:
                work.future.cancel()
                self._edge.admission.release_unary(audio_ms)
                self._edge.report(work, batcher.engine.name, context)
            return _response(batcher, self._edge.answer(segment, result, name))

    @statuses
    async def AlignStream(self, _requests: AsyncIterator[pb.AlignStreamRequest], context: StreamContext) -> None:  # noqa: N802  named by the contract
        """Align segments as they come, within the credit that was granted."""
        async with self._counting_refusals():
            first = await received(context)
            if first is None:
                return
            if not first.HasField("open") or first.segments:
                raise Invalid("open", "the first message of a stream must be `open`, and carries nothing else")
            async with self._lease(first.open.model) as batcher:
                # Two streams of one client are two claims to a fair share: the number tells them apart.
                client = f"{first.open.client or context.peer()} #{next(self._numbers)}"
                stream = Stream(self._edge, batcher, client, context)
                self._streams.add(stream)
                try:
                    await stream.run()
                finally:
                    self._streams.discard(stream)

    @statuses
    async def Locate(self, _requests: AsyncIterator[pb.LocateRequest], context: LocateContext) -> pb.LocateResponse:  # noqa: N802  named by the contract
        """Find the utterances of a transcript in a recording."""
        deadline = deadline_of(context)
        async with self._counting_refusals():
            first = await received(context)
            if first is None or not first.HasField("open"):
                raise Invalid("open", "the first message must be `open`")
            async with self._lease(first.open.model) as batcher:
                if (scanning := batcher.engine.scanning) is None:
                    name = batcher.engine.name
                    raise Invalid("open.model", f"model {name!r} cannot look for utterances in a recording")
                client = f"{first.open.client or context.peer()} #{next(self._numbers)}"
                locating = Locating(self._edge, batcher, client, scanning, deadline)
                return pb.LocateResponse(model=batcher.engine.name, places=await locating.run(first.open, context))

    @statuses
    async def ListModels(self, _request: pb.ListModelsRequest, _context: ModelsContext) -> pb.ListModelsResponse:  # noqa: N802  named by the contract
        """Say which models can be served."""
        return pb.ListModelsResponse(models=map(wire.model, self._residents.status()))

    @statuses
    async def LoadModel(self, request: pb.LoadModelRequest, _context: LoadContext) -> pb.LoadModelResponse:  # noqa: N802  named by the contract
        """Load a model."""
        self._refuse_when_draining()
        await self._residents.load(request.model)
        name = request.model or self._residents.default
        row = next(row for row in self._residents.status() if row.description.name == name)
        return pb.LoadModelResponse(model=wire.model(row))

    @statuses
    async def UnloadModel(self, request: pb.UnloadModelRequest, _context: UnloadContext) -> pb.UnloadModelResponse:  # noqa: N802  named by the contract
        """Unload a model that nobody uses."""
        await self._residents.unload(request.model)
        return pb.UnloadModelResponse()

    @statuses
    async def GetServerInfo(self, _request: pb.GetServerInfoRequest, _context: InfoContext) -> pb.GetServerInfoResponse:  # noqa: N802  named by the contract
        """Say what this server is and how busy."""
        batchers, cache = self._residents.batchers, self._edge.cache
        return pb.GetServerInfoResponse(
            version=__version__,
            protocol_revision=PROTOCOL_REVISION,
            pid=os.getpid(),
            uptime_ms=int((time.monotonic() - self._started) * 1000),
            draining=self._edge.draining,
            device=self._device,
            limits=pb.Limits(
                max_segment_ms=max((int(batcher.engine.max_segment_s * 1000) for batcher in batchers), default=0),
                max_words=self._edge.max_words,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_queued_ms=self._edge.admission.budget_ms,
            ),
            load=pb.Load(
                queued_ms=sum(batcher.queued_ms for batcher in batchers),
                computing_ms=sum(batcher.computing_ms for batcher in batchers),
                granted_ms=self._edge.admission.granted_ms,
                clients=self._edge.admission.streams,
                rate=max((batcher.throughput.rate for batcher in batchers), default=0.0),
                memory_bytes=self._edge.guard.memory.used(),
                memory_limit_bytes=self._edge.guard.limit,
                segments_done=self._residents.segments_done,
                audio_done_ms=self._residents.audio_done_ms,
                refused=self._edge.metrics.refusals(),
                in_vain=self._edge.metrics.vain,
                by_client=[stream.load() for stream in self._streams],
                cached=cache.hits if cache else 0,
                cache_bytes=cache.size_bytes if cache else 0,
            ),
        )

    def readings(self) -> Iterator[Reading]:
        """The gauges of the metrics page. Read on the event loop."""
        yield (
            "align_granted_audio_seconds",
            "Credit that is out and not used.",
            {},
            self._edge.admission.granted_ms / 1000,
        )
        yield (
            "align_held_audio_seconds",
            "Audio accepted and not yet computed.",
            {},
            self._edge.admission.held_ms / 1000,
        )
        yield (
            "align_budget_audio_seconds",
            "Audio that may be held or granted.",
            {},
            self._edge.admission.budget_ms / 1000,
        )
        yield "align_streams", "Streams that are open.", {}, self._edge.admission.streams
        yield "align_memory_bytes", "Resident memory of the process.", {}, self._edge.guard.memory.used()
        yield "align_allocated_bytes", "Asked of the allocator and not freed.", {}, allocated()
        yield "align_python_blocks", "Allocated by Python and not freed.", {}, sys.getallocatedblocks()
        yield "align_memory_limit_bytes", "What it is to stay below.", {}, self._edge.guard.limit
        if (cache := self._edge.cache) is not None:
            yield "align_cache_hits", "Segments answered with what was computed before.", {}, cache.hits
            yield "align_cache_misses", "Segments looked for in vain.", {}, cache.misses
            yield "align_cache_bytes", "What the results that are kept take on disk.", {}, cache.size_bytes
        for row in self._residents.status():
            labels = {"model": row.description.name}
            yield "align_model_loaded", "Whether a model is in memory.", labels, float(row.batcher is not None)
            if (batcher := row.batcher) is not None:
                yield "align_queued_audio_seconds", "Cost of what waits.", labels, batcher.queued_ms / 1000
                yield "align_computing_audio_seconds", "Cost of what is under way.", labels, batcher.computing_ms / 1000
                yield "align_rate", "Audio seconds computed per second, lately.", labels, batcher.throughput.rate
                yield "align_batch_limit_bytes", "Memory expected of a full batch.", labels, batcher.batch_bytes
        for stream in self._streams:
            load, labels = stream.load(), {"client": stream.client}
            for name, text, ms in (
                ("unanswered_audio_seconds", "Sent and not answered.", load.unanswered_ms),
                ("credit_audio_seconds", "Granted and not used.", load.credit_ms),
                ("audio_seconds", "Answered since the stream opened.", load.audio_done_ms),
            ):
                yield f"align_client_{name}", text, labels, ms / 1000

    @contextlib.asynccontextmanager
    async def _lease(self, model: str) -> AsyncIterator[Batcher]:
        self._refuse_when_draining()
        async with self._residents.lease(model) as batcher:
            yield batcher

    @contextlib.asynccontextmanager
    async def _counted(self, arrived: float) -> AsyncIterator[None]:
        outcome = "failed"
        try:
            async with self._counting_refusals():
                yield
            outcome = "answered"
        except Refusal as refusal:
            outcome = refusal.reason
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._edge.metrics.request(outcome, time.monotonic() - arrived)

    @contextlib.asynccontextmanager
    async def _counting_refusals(self) -> AsyncIterator[None]:
        try:
            yield
        except Refusal as refusal:
            self._edge.metrics.refused(refusal.reason)
            raise

    def _refuse_when_draining(self) -> None:
        if self._edge.draining:
            raise Unavailable("the server is draining; it takes no new work")

    def _refuse_unread(self, given: dict[str, str], deadline: float | None) -> None:
        """Raise the Refusal of a call that no loaded model could take, by what it says of itself."""
        self._refuse_when_draining()
        said = given.get(AUDIO, "")
        audio_ms = int(said) if said.isdecimal() else 0
        if batchers := self._residents.batchers:
            _check_deadline(deadline, min(each.seconds_until_done(each.engine.cost(audio_ms)) for each in batchers))
            fastest = max((each.throughput for each in batchers), key=lambda each: each.rate)
            self._edge.admission.check_unary(audio_ms, fastest.seconds_for, returning=_returns(given))


def _response(batcher: Batcher, found: pb.SegmentResult) -> pb.AlignResponse:
    return pb.AlignResponse(model=batcher.engine.name, words=found.words, said=found.said, cached=found.cached)


def _check_deadline(deadline: float | None, seconds: float) -> None:
    """Raise DeadlineTooSoon where what takes so long from now would come too late."""
    if deadline is None:
        return
    needed = MARGIN * seconds
    left = deadline - time.monotonic()
    if needed > left:
        raise DeadlineTooSoon(
            f"the result would take about {needed:.2f} s, and the deadline leaves {max(left, 0):.2f} s"
        )


def _returns(given: dict[str, str]) -> bool:
    """Whether the call was refused before."""
    return given.get(ATTEMPT, "0") != "0"


def _metadata(context: AlignContext) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata() or ()}
