"""The gRPC edge: messages in, work to the scheduler, messages out.

The only module, with errors.py, that knows the wire contract and status codes. It computes nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceServicer
from align_server import __version__
from align_server.engines.engine import MissingReason, Segment, Word, WordKind
from align_server.errors import statuses
from align_server.scheduling.residents import ModelState
from align_server.scheduling.work import Invalid, Unavailable, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc.aio import ServicerContext

    from align_server.engines.engine import Result
    from align_server.scheduling.admission import Admission, Grant, Throughput
    from align_server.scheduling.batcher import Batcher
    from align_server.scheduling.residents import ModelStatus, Residents

    AlignContext = ServicerContext[pb.AlignRequest, pb.AlignResponse]
    StreamContext = ServicerContext[pb.AlignStreamRequest, pb.AlignStreamResponse]
    ModelsContext = ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse]
    InfoContext = ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse]

PROTOCOL_REVISION = 1
MAX_MESSAGE_BYTES = 16 * 2**20

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


class AlignService(AlignServiceServicer):  # type: ignore[misc]  # the generated class has no types
    """Answers the calls of align.proto from the resident models."""

    def __init__(
        self, residents: Residents, admission: Admission, throughput: Throughput, *, device: str, max_words: int
    ) -> None:
        self.admission = admission
        self.draining = False
        self._residents = residents
        self._throughput = throughput
        self._device = device
        self._max_words = max_words
        self._streams: set[_Stream] = set()
        self._started = time.monotonic()
        self._process = psutil.Process()

    def drain(self) -> None:
        """Take no new work; streams end when what they were sent is answered."""
        self.draining = True
        for stream in self._streams:
            stream.wake()

    async def Align(self, request: pb.AlignRequest, context: AlignContext) -> pb.AlignResponse:  # noqa: N802  named by the contract
        """Align one segment."""
        async with statuses(context):
            batcher = self._batcher(request.model)
            segment = self.segment(request.segment, batcher)
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            work = Work(segment, f"unary {context.peer()}", batcher.engine.cost(segment), deadline)
            self.admission.admit_unary(work.cost_ms, deadline)
            try:
                batcher.queue.put(work)
                result = await work.future
            finally:
                work.future.cancel()
                self.admission.release_unary(work.cost_ms)
            return pb.AlignResponse(model=batcher.engine.name, words=_timings(result))
        raise AssertionError("statuses() ends every failed call with a status")

    async def AlignStream(self, requests: AsyncIterator[pb.AlignStreamRequest], context: StreamContext) -> None:  # noqa: N802  named by the contract
        """Align segments as they come, within the credit that was granted."""
        async with statuses(context):
            first = await anext(aiter(requests), None)
            if first is None:
                return
            if first.WhichOneof("message") != "open":
                raise Invalid("open", "the first message of a stream must be `open`")
            stream = _Stream(self, self._batcher(first.open.model), first.open.client or context.peer())
            self._streams.add(stream)
            try:
                await stream.run(requests, context)
            finally:
                self._streams.discard(stream)

    async def ListModels(self, _request: pb.ListModelsRequest, context: ModelsContext) -> pb.ListModelsResponse:  # noqa: N802  named by the contract
        """Say which models can be served."""
        async with statuses(context):
            return pb.ListModelsResponse(models=map(_model, await asyncio.to_thread(self._residents.status)))
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
                    queued_ms=sum(batcher.queue.queued_ms for batcher in batchers),
                    computing_ms=sum(batcher.computing_ms for batcher in batchers),
                    granted_ms=self.admission.granted_ms,
                    clients=self.admission.streams,
                    rate=self._throughput.rate,
                    memory_bytes=self._process.memory_info().rss,
                    segments_done=self._throughput.segments_done,
                    audio_done_ms=self._throughput.audio_done_ms,
                ),
            )
        raise AssertionError("statuses() ends every failed call with a status")

    def _batcher(self, model: str) -> Batcher:
        if self.draining:
            raise Unavailable("the server is draining; it takes no new work")
        return self._residents.get(model)

    def segment(self, message: pb.Segment, batcher: Batcher) -> Segment:
        """The domain's view of a segment, without a copy of its audio. Raises Invalid."""
        if len(message.pcm) % 2:
            raise Invalid("segment.pcm", f"{len(message.pcm)} bytes are not a whole number of 16-bit samples")
        if not message.pcm:
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
        segment = Segment(message.id, np.frombuffer(message.pcm, dtype="<i2"), tuple(words))
        limit_ms = int(batcher.engine.max_segment_s * 1000)
        if segment.duration_ms > limit_ms:
            raise Invalid("segment.pcm", f"{segment.duration_ms} ms of audio is longer than the {limit_ms} ms allowed")
        return segment


class _Stream:
    """One AlignStream call: a reader that accepts segments, and a writer that sends credit and results."""

    def __init__(self, service: AlignService, batcher: Batcher, client: str) -> None:
        self._service = service
        self._admission = service.admission
        self._batcher = batcher
        # Two streams of one client are two claims to a fair share: the number tells them apart.
        self._client = f"{client} {id(self):x}"
        self._unanswered: set[Work] = set()
        self._outbox: deque[tuple[pb.AlignStreamResponse, int]] = deque()
        self._changed = asyncio.Event()

    async def run(self, requests: AsyncIterator[pb.AlignStreamRequest], context: StreamContext) -> None:
        """Serve the stream until the client has no more, or the server drains, and everything is answered."""
        grant = self._admission.open(self._grant)
        reader = asyncio.create_task(self._read(requests, grant))
        reader.add_done_callback(lambda _: self.wake())
        try:
            while not (self._service.draining or reader.done()) or self._unanswered or self._outbox:
                self._changed.clear()
                while self._outbox:
                    response, cost_ms = self._outbox.popleft()
                    await context.write(response)
                    # Only an answer that has left is granted anew: a client that does not read its
                    # results is bounded by its window.
                    if cost_ms:
                        self._admission.answer(grant, cost_ms)
                if reader.done():
                    reader.result()
                if self._unanswered or not (self._service.draining or reader.done()):
                    await self._changed.wait()
            if not reader.done():
                raise Unavailable("the server is draining; what was sent is answered")
        finally:
            reader.cancel()
            for work in list(self._unanswered):
                work.future.cancel()
            self._admission.close(grant)

    def wake(self) -> None:
        """Something changed that the writer has to look at."""
        self._changed.set()

    def _send(self, cost_ms: int = 0, **message: Any) -> None:
        self._outbox.append((pb.AlignStreamResponse(**message), cost_ms))
        self.wake()

    def _grant(self, total_ms: int) -> None:
        if not self._service.draining:
            if self._outbox and self._outbox[-1][0].HasField("credit"):
                self._outbox.pop()  # a newer total says what an older one did
            self._send(credit=pb.Credit(granted_ms=total_ms))

    async def _read(self, requests: AsyncIterator[pb.AlignStreamRequest], grant: Grant) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "segment":
                    self._accept(request.segment, grant)
                case "demand":
                    self._admission.demand(grant, int(request.demand.segment_ms))
                case other:
                    raise Invalid(other or "message", "a stream is opened once, then carries segments and demands")

    def _accept(self, message: pb.Segment, grant: Grant) -> None:
        sent_ms = audio_ms(len(message.pcm))
        if not self._admission.receive(grant, sent_ms):
            raise Invalid("segment.pcm", f"{sent_ms} ms were sent with a credit of {grant.unused_ms} ms")
        try:
            segment = self._service.segment(message, self._batcher)
        except Invalid as invalid:
            refusal = pb.SegmentRefusal(id=message.id, field=invalid.field, description=invalid.description)
            self._send(sent_ms, refusal=refusal)
            return
        work = Work(segment, self._client, self._batcher.engine.cost(segment))
        self._unanswered.add(work)
        work.future.add_done_callback(lambda _: self._answer(work, sent_ms))
        self._batcher.queue.put(work)

    def _answer(self, work: Work, sent_ms: int) -> None:
        self._unanswered.discard(work)
        if not work.future.cancelled():
            words = _timings(work.future.result())
            self._send(sent_ms, result=pb.SegmentResult(id=work.segment.id, words=words))


def audio_ms(pcm_bytes: int) -> int:
    """Credit that this many bytes of audio cost: milliseconds, rounded up."""
    return -(-pcm_bytes // 32)


def _model(row: ModelStatus) -> pb.Model:
    return pb.Model(
        name=row.description.name,
        languages=row.description.languages,
        licence=row.description.licence,
        size_bytes=row.description.size_bytes,
        state=STATES[row.state],
        detail=row.detail or row.description.note,
        revision=row.revision,
        max_segment_ms=row.max_segment_ms,
        is_default=row.is_default,
    )


def _timings(result: Result) -> list[pb.WordTiming]:
    return [
        pb.WordTiming(start_ms=word.start_ms, end_ms=word.end_ms, score=word.score)
        if word.reason is None
        else pb.WordTiming(reason=REASONS[word.reason], detail=word.detail)
        for word in result.words
    ]
