"""The gRPC edge: messages in, work to the scheduler, messages out.

The only module, with errors.py, that knows the wire contract and status codes. It computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceServicer
from align_server import __version__
from align_server.engines.engine import MissingReason, Segment, Word, WordKind
from align_server.errors import statuses
from align_server.scheduling.residents import ModelState
from align_server.scheduling.work import DeadlineTooSoon, Invalid, Refusal, Unavailable, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from grpc.aio import ServicerContext

    from align_server.engines.engine import Result
    from align_server.metrics import Metrics, Reading
    from align_server.scheduling.admission import Admission, Grant
    from align_server.scheduling.batcher import Batcher
    from align_server.scheduling.memory import MemoryGuard
    from align_server.scheduling.residents import ModelStatus, Residents
    from align_server.tracing import Tracer

    AlignContext = ServicerContext[pb.AlignRequest, pb.AlignResponse]
    StreamContext = ServicerContext[pb.AlignStreamRequest, pb.AlignStreamResponse]
    ModelsContext = ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse]
    InfoContext = ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse]
    LoadContext = ServicerContext[pb.LoadModelRequest, pb.LoadModelResponse]
    UnloadContext = ServicerContext[pb.UnloadModelRequest, pb.UnloadModelResponse]

PROTOCOL_REVISION = 1
MAX_MESSAGE_BYTES = 16 * 2**20
CLIENT = "align-client"  # metadata: a name for the fair queue, such as a host and process id
ATTEMPT = "align-attempt"  # metadata: how often a call was refused before
MAX_ANSWERS = 256  # in one message, which is then far below what a client takes
MARGIN = 1.5  # on the guess of how long a call will take, where its deadline is checked

KINDS = {
    pb.WORD_KIND_UNSPECIFIED: WordKind.WORD,
    pb.WORD_KIND_WORD: WordKind.WORD,
    pb.WORD_KIND_UNKNOWN_SOUND: WordKind.UNKNOWN_SOUND,
    pb.WORD_KIND_PAUSE: WordKind.PAUSE,
}
REASONS = {
    MissingReason.UNPRONOUNCEABLE: pb.MISSING_REASON_UNPRONOUNCEABLE,
    MissingReason.UNSUPPORTED_LANGUAGE: pb.MISSING_REASON_UNSUPPORTED_LANGUAGE,
    MissingReason.AUDIO_TOO_SHORT: pb.MISSING_REASON_AUDIO_TOO_SHORT,
    MissingReason.NO_SPEECH: pb.MISSING_REASON_NO_SPEECH,
    MissingReason.ENGINE_FAILED: pb.MISSING_REASON_ENGINE_FAILED,
}
STATES = {
    ModelState.AVAILABLE: pb.MODEL_STATE_AVAILABLE,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.SERVING: pb.MODEL_STATE_SERVING,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}

log = structlog.get_logger()


class AlignService(AlignServiceServicer):  # type: ignore[misc]  # the generated class has no types
    """Answers the calls of align.proto from the resident models."""

    def __init__(  # noqa: PLR0913  what it is wired to, by name
        self,
        residents: Residents,
        admission: Admission,
        guard: MemoryGuard,
        metrics: Metrics,
        tracer: Tracer,
        *,
        device: str,
        max_words: int,
    ) -> None:
        self.admission = admission
        self.metrics = metrics
        self.tracer = tracer
        self.draining = False
        self._residents = residents
        self._guard = guard
        self._device = device
        self._max_words = max_words
        self._streams: set[_Stream] = set()
        self._numbers = itertools.count(1)
        self._started = time.monotonic()

    def drain(self) -> None:
        """Take no new work; streams end when what they were sent is answered."""
        self.draining = True
        for stream in self._streams:
            stream.wake()

    async def Align(self, request: pb.AlignRequest, context: AlignContext) -> pb.AlignResponse:  # noqa: N802  named by the contract
        """Align one segment."""
        arrived = time.monotonic()
        remaining = context.time_remaining()
        deadline = None if remaining is None else arrived + remaining
        async with statuses(context), self._counted(arrived), self._lease(request.model) as batcher:
            given = _metadata(context)
            segment = self.segment(request.segment, request.segment.pcm, batcher)
            client = given.get(CLIENT) or context.peer()
            work = Work(segment, client, batcher.engine.cost(segment.duration_ms), interactive=True, deadline=deadline)
            self._meets_deadline(work, batcher)
            audio_ms = segment.duration_ms
            self.admission.admit_unary(
                audio_ms, batcher.throughput.seconds_for, returning=given.get(ATTEMPT, "0") != "0"
            )
            try:
                batcher.put(work)
                result = await work.future
            finally:
                work.future.cancel()
                self.admission.release_unary(audio_ms)
                self.report(work, batcher.engine.name, context)
            return pb.AlignResponse(model=batcher.engine.name, words=_timings(result))
        raise AssertionError("statuses() ends every failed call with a status")

    async def AlignStream(self, requests: AsyncIterator[pb.AlignStreamRequest], context: StreamContext) -> None:  # noqa: N802  named by the contract
        """Align segments as they come, within the credit that was granted."""
        async with statuses(context), self._counting_refusals():
            first = await anext(aiter(requests), None)
            if first is None:
                return
            if not first.HasField("open") or first.segments:
                raise Invalid("open", "the first message of a stream must be `open`, and carries nothing else")
            async with self._lease(first.open.model) as batcher:
                # Two streams of one client are two claims to a fair share: the number tells them apart.
                client = f"{first.open.client or context.peer()} #{next(self._numbers)}"
                stream = _Stream(self, batcher, client, context)
                self._streams.add(stream)
                try:
                    await stream.run(requests)
                finally:
                    self._streams.discard(stream)

    async def ListModels(self, _request: pb.ListModelsRequest, context: ModelsContext) -> pb.ListModelsResponse:  # noqa: N802  named by the contract
        """Say which models can be served."""
        async with statuses(context):
            return pb.ListModelsResponse(models=map(_model, self._residents.status()))
        raise AssertionError("statuses() ends every failed call with a status")

    async def LoadModel(self, request: pb.LoadModelRequest, context: LoadContext) -> pb.LoadModelResponse:  # noqa: N802  named by the contract
        """Load a model."""
        async with statuses(context):
            self._refuse_when_draining()
            await self._residents.load(request.model)
            name = request.model or self._residents.default
            row = next(row for row in self._residents.status() if row.description.name == name)
            return pb.LoadModelResponse(model=_model(row))
        raise AssertionError("statuses() ends every failed call with a status")

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: UnloadContext) -> pb.UnloadModelResponse:  # noqa: N802  named by the contract
        """Unload a model that nobody uses."""
        async with statuses(context):
            await self._residents.unload(request.model)
            return pb.UnloadModelResponse()
        raise AssertionError("statuses() ends every failed call with a status")

    async def GetServerInfo(self, _request: pb.GetServerInfoRequest, context: InfoContext) -> pb.GetServerInfoResponse:  # noqa: N802  named by the contract
        """Say what this server is and how busy."""
        async with statuses(context):
            batchers = self._residents.batchers
            return pb.GetServerInfoResponse(
                version=__version__,
                protocol_revision=PROTOCOL_REVISION,
                pid=os.getpid(),
                uptime_ms=int((time.monotonic() - self._started) * 1000),
                draining=self.draining,
                device=self._device,
                limits=pb.Limits(
                    max_segment_ms=max((int(batcher.engine.max_segment_s * 1000) for batcher in batchers), default=0),
                    max_words=self._max_words,
                    max_message_bytes=MAX_MESSAGE_BYTES,
                    max_queued_ms=self.admission.budget_ms,
                ),
                load=pb.Load(
                    queued_ms=sum(batcher.queued_ms for batcher in batchers),
                    computing_ms=sum(batcher.computing_ms for batcher in batchers),
                    granted_ms=self.admission.granted_ms,
                    clients=self.admission.streams,
                    rate=max((batcher.throughput.rate for batcher in batchers), default=0.0),
                    memory_bytes=self._guard.memory.used(),
                    memory_limit_bytes=self._guard.limit,
                    segments_done=self._residents.segments_done,
                    audio_done_ms=self._residents.audio_done_ms,
                    refused=self.metrics.refusals(),
                    in_vain=self.metrics.vain,
                    by_client=[stream.load() for stream in self._streams],
                ),
            )
        raise AssertionError("statuses() ends every failed call with a status")

    def readings(self) -> Iterator[Reading]:
        """The gauges of the metrics page. Read on the event loop."""
        yield "align_granted_audio_seconds", "Credit that is out and not used.", {}, self.admission.granted_ms / 1000
        yield "align_held_audio_seconds", "Audio accepted and not yet computed.", {}, self.admission.held_ms / 1000
        yield "align_budget_audio_seconds", "Audio that may be held or granted.", {}, self.admission.budget_ms / 1000
        yield "align_streams", "Streams that are open.", {}, self.admission.streams
        yield "align_memory_bytes", "Resident memory of the process.", {}, self._guard.memory.used()
        yield "align_memory_limit_bytes", "What it is to stay below.", {}, self._guard.limit
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
            yield "align_client_unanswered_audio_seconds", "Sent and not answered.", labels, load.unanswered_ms / 1000
            yield "align_client_credit_audio_seconds", "Granted and not used.", labels, load.credit_ms / 1000
            yield "align_client_audio_seconds", "Answered since the stream opened.", labels, load.audio_done_ms / 1000

    def report(self, work: Work, model: str, context: Any, outcome: str = "") -> None:
        """One line in the log and one span for a segment that is over."""
        if not (self.tracer.is_on or log.is_enabled_for(logging.DEBUG)):
            return
        outcome = outcome or _outcome(work)
        waited = work.taken_at - work.accepted_at if work.taken_at else 0.0
        log.debug(
            "segment",
            id=work.segment.id,
            client=work.client,
            model=model,
            outcome=outcome,
            audio_ms=work.segment.duration_ms,
            words=len(work.segment.words),
            waited_s=round(waited, 4),
            seconds=round(time.monotonic() - work.accepted_at, 4),
            memory_mb=self._guard.memory.used() >> 20,
        )
        self.tracer.segment(work, model, outcome, self.tracer.context(context.invocation_metadata() or ()))

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
            self.metrics.request(outcome, time.monotonic() - arrived)

    @contextlib.asynccontextmanager
    async def _counting_refusals(self) -> AsyncIterator[None]:
        try:
            yield
        except Refusal as refusal:
            self.metrics.refused(refusal.reason)
            raise

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise Unavailable("the server is draining; it takes no new work")

    def _meets_deadline(self, work: Work, batcher: Batcher) -> None:
        """Raise DeadlineTooSoon for work whose result would come too late."""
        if work.deadline is None:
            return
        needed = MARGIN * batcher.seconds_until_done(work.cost_ms)
        left = work.deadline - time.monotonic()
        if needed > left:
            raise DeadlineTooSoon(
                f"the result would take about {needed:.2f} s, and the deadline leaves {max(left, 0):.2f} s"
            )

    def segment(self, message: pb.Segment, pcm: bytes, batcher: Batcher) -> Segment:
        """The domain's view of a segment whose audio is `pcm`: reading the field copies it. Raises Invalid."""
        if len(pcm) % 2:
            raise Invalid("segment.pcm", f"{len(pcm)} bytes are not a whole number of 16-bit samples")
        if not pcm:
            raise Invalid("segment.pcm", "there is no audio in it")
        if not message.words:
            raise Invalid("segment.words", "there is no word to align")
        if len(message.words) > self._max_words:
            raise Invalid("segment.words", f"{len(message.words)} words are more than the {self._max_words} allowed")
        words = []
        for index, word in enumerate(message.words):
            kind = KINDS.get(word.kind)
            if kind is None:
                raise Invalid(f"segment.words[{index}].kind", f"{word.kind} is no kind that this server knows")
            if kind is WordKind.WORD and not word.text.strip():
                raise Invalid(f"segment.words[{index}].text", "a word has no text")
            words.append(Word(word.text, word.language, kind))
        segment = Segment(message.id, np.frombuffer(pcm, dtype="<i2"), tuple(words))
        limit_ms = int(batcher.engine.max_segment_s * 1000)
        if segment.duration_ms > limit_ms:
            raise Invalid("segment.pcm", f"{segment.duration_ms} ms of audio is longer than the {limit_ms} ms allowed")
        return segment


class _Stream:
    """One AlignStream call: a reader that accepts segments, and a writer that sends credit and results."""

    def __init__(self, service: AlignService, batcher: Batcher, client: str, context: StreamContext) -> None:
        self.client = client
        self._service = service
        self._admission = service.admission
        self._batcher = batcher
        self._context = context
        self._grant: Grant | None = None
        remaining = context.time_remaining()
        self._deadline = None if remaining is None else time.monotonic() + remaining
        self._unanswered: set[Work] = set()
        self._outbox: deque[tuple[pb.SegmentResult | pb.SegmentRefusal, int]] = deque()  # with the audio's length in ms
        self._granted_ms = 0  # to be told; 0 where it was
        self._changed = asyncio.Event()
        self._failure: Refusal | None = None

    async def run(self, requests: AsyncIterator[pb.AlignStreamRequest]) -> None:
        """Serve the stream until the client has no more, or the server drains, and everything is answered."""
        self._grant = grant = self._admission.open(self._credit, self._batcher.window_ms)
        reader = asyncio.create_task(self._read(requests, grant))
        reader.add_done_callback(lambda _: self.wake())
        try:
            while True:
                self._changed.clear()
                while self._outbox or self._granted_ms:
                    response, answered_ms = self._next_response()
                    await self._context.write(response)
                    # Only an answer that has left is granted anew: a client that does not read its
                    # results is bounded by its window.
                    if answered_ms:
                        self._admission.answer(grant, answered_ms)
                if reader.done():
                    reader.result()
                if self._failure:
                    raise self._failure
                if not self._unanswered and (reader.done() or self._service.draining):
                    break
                await self._changed.wait()
            if not reader.done():
                raise Unavailable("the server is draining; what was sent is answered")
        finally:
            reader.cancel()
            gone, self._unanswered = self._unanswered, set()  # closing gives back what they hold, answers must not
            for work in gone:
                work.future.cancel()
                self._service.report(work, self._batcher.engine.name, self._context)
            self._admission.close(grant)

    def wake(self) -> None:
        """Something changed that the writer has to look at."""
        self._changed.set()

    def load(self) -> pb.ClientLoad:
        """What the stream has out."""
        grant = self._grant
        return pb.ClientLoad(
            client=self.client,
            model=self._batcher.engine.name,
            unanswered_ms=grant.received_ms - grant.answered_ms if grant else 0,
            credit_ms=grant.unused_ms if grant else 0,
            audio_done_ms=grant.answered_ms if grant else 0,
        )

    def _next_response(self) -> tuple[pb.AlignStreamResponse, int]:
        """All that there is to say, up to MAX_ANSWERS, and the length of the audio that it answers."""
        granted_ms, self._granted_ms = self._granted_ms, 0
        answers = [self._outbox.popleft() for _ in range(min(len(self._outbox), MAX_ANSWERS))]
        response = pb.AlignStreamResponse(
            granted_ms=granted_ms,
            results=[answer for answer, _ in answers if isinstance(answer, pb.SegmentResult)],
            refusals=[answer for answer, _ in answers if isinstance(answer, pb.SegmentRefusal)],
        )
        return response, sum(ms for _, ms in answers)

    def _credit(self, total_ms: int) -> None:
        if not self._service.draining:
            self._granted_ms = total_ms
            self.wake()

    def _send(self, answer: pb.SegmentResult | pb.SegmentRefusal, sent_ms: int) -> None:
        self._outbox.append((answer, sent_ms))
        self.wake()

    async def _read(self, requests: AsyncIterator[pb.AlignStreamRequest], grant: Grant) -> None:
        async for request in requests:
            if request.HasField("open"):
                raise Invalid("open", "a stream is opened once")
            if request.demand_ms:
                self._admission.demand(grant, request.demand_ms)
            for segment in request.segments:
                await self._accept(segment, grant)

    async def _accept(self, message: pb.Segment, grant: Grant) -> None:
        pcm = message.pcm
        sent_ms = audio_ms(len(pcm))
        await self._admission.room_for(sent_ms)
        if not self._admission.receive(grant, sent_ms):
            raise Invalid("segment.pcm", f"{sent_ms} ms were sent with a credit of {grant.unused_ms} ms")
        try:
            segment = self._service.segment(message, pcm, self._batcher)
            cost = self._batcher.engine.cost(segment.duration_ms)
            work = Work(segment, self.client, cost, deadline=self._deadline)
            self._batcher.put(work)
        except Invalid as invalid:
            self._admission.computed(grant, sent_ms)
            self._refuse(message.id, invalid, sent_ms)
        else:
            work.future.add_done_callback(lambda _: self._answer(work, sent_ms, grant))
            self._unanswered.add(work)

    def _answer(self, work: Work, sent_ms: int, grant: Grant) -> None:
        if work not in self._unanswered:
            return  # the stream is over, and with it its grant
        self._unanswered.discard(work)
        self._service.report(work, self._batcher.engine.name, self._context)
        self._admission.computed(grant, sent_ms)
        match work.future.exception():
            case None:
                words = _timings(work.future.result())
                self._send(pb.SegmentResult(id=work.segment.id, words=words), sent_ms)
            case Invalid() | DeadlineTooSoon() as refusal:
                self._refuse(work.segment.id, refusal, sent_ms)
            case Refusal() as refusal:
                self._failure = refusal  # the client sends again what was not answered, here or elsewhere
                self.wake()

    def _refuse(self, segment_id: str, refusal: Refusal, sent_ms: int) -> None:
        self._service.metrics.refused(refusal.reason)
        field, why = (refusal.field, refusal.description) if isinstance(refusal, Invalid) else ("", str(refusal))
        self._send(pb.SegmentRefusal(id=segment_id, field=field, description=why), sent_ms)


def audio_ms(pcm_bytes: int) -> int:
    """Credit that this many bytes of audio cost: milliseconds, rounded up."""
    return -(-pcm_bytes // 32)


def _metadata(context: AlignContext) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata() or ()}


def _outcome(work: Work) -> str:
    if not work.future.done() or work.future.cancelled():
        return "cancelled"
    error = work.future.exception()
    return error.reason if isinstance(error, Refusal) else "failed" if error else "answered"


def _model(row: ModelStatus) -> pb.Model:
    batcher = row.batcher
    return pb.Model(
        name=row.description.name,
        languages=row.description.languages,
        licence=row.description.licence,
        size_bytes=row.description.size_bytes,
        state=STATES[row.state],
        detail=row.detail or row.description.note,
        revision=batcher.engine.revision if batcher else "",
        max_segment_ms=int(batcher.engine.max_segment_s * 1000) if batcher else 0,
        is_default=row.is_default,
        load=pb.ModelLoad(
            queued_ms=batcher.queued_ms,
            computing_ms=batcher.computing_ms,
            rate=batcher.throughput.rate,
            batch_ms=batcher.batch_ms,
            batch_bytes=int(batcher.batch_bytes),
        )
        if batcher
        else None,
    )


def _timings(result: Result) -> list[pb.WordTiming]:
    return [
        pb.WordTiming(start_ms=word.start_ms, end_ms=word.end_ms, score=word.score)
        if word.reason is None
        else pb.WordTiming(reason=REASONS[word.reason], detail=word.detail)
        for word in result.words
    ]
