"""One AlignStream call, and what all calls of the edge share. Knows messages, and no status codes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog

from align_proto.v1 import align_pb2 as pb
from align_server import wire
from align_server.cache import key
from align_server.engines.engine import MissingReason
from align_server.scheduling.queue import QUANTUM_MS
from align_server.scheduling.work import DeadlineTooSoon, Invalid, Refusal, Unavailable, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpc.aio import ServicerContext

    from align_server.cache import ResultCache
    from align_server.engines.engine import Result, Segment
    from align_server.metrics import Metrics
    from align_server.scheduling.admission import Admission, Grant
    from align_server.scheduling.batcher import Batcher
    from align_server.scheduling.memory import MemoryGuard
    from align_server.tracing import Tracer

    StreamContext = ServicerContext[pb.AlignStreamRequest, pb.AlignStreamResponse]

MAX_ANSWERS = 256  # in one message, which is then far below what a client takes
LUMP_MS = 60_000  # of audio answered, after which answers leave...
LUMP_SHARE = 3  # ... or after this part of the stream's window, where that is less, or...
HOLD_S = 1.0  # ... after so long, where as much audio of the same stream still waits to be computed

Message = TypeVar("Message")

log = structlog.get_logger()


def deadline_of(context: ServicerContext[Any, Any]) -> float | None:
    """When the caller stops waiting, on the clock of `time.monotonic`; None where it does not say."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


async def received(context: ServicerContext[Message, Any]) -> Message | None:
    """The next message of a call, None after the last.

    gRPC's iterator over them knows itself: once begun and not read to its end, it keeps its call, and the call what was
    received, until the garbage collector finds the circle.
    """
    message: Any = await context.read()
    return None if message is grpc.aio.EOF else message


@dataclass(slots=True, eq=False)
class Edge:
    """What the calls of a server share."""

    admission: Admission
    guard: MemoryGuard
    metrics: Metrics
    tracer: Tracer
    max_words: int
    cache: ResultCache | None = None
    draining: bool = False

    def segment(self, message: pb.Segment, pcm: bytes, batcher: Batcher) -> Segment:
        """The segment of a message whose audio is `pcm`. Raises Invalid."""
        engine = batcher.engine
        found = wire.segment(message, pcm, max_segment_s=engine.max_segment_s, max_words=self.max_words)
        if found.transcribe is not None and not engine.transcribes:
            raise Invalid("segment.transcribe", f"model {engine.name!r} cannot find words; a whisper: model can")
        if found.phones and not engine.phones:
            raise Invalid("segment.phones", f"model {engine.name!r} has no phones; leave them out, or ask sphinx-en-us")
        return found

    def find(self, segment: Segment, batcher: Batcher) -> tuple[bytes, pb.SegmentResult | None]:
        """The key of a segment's result, empty where none is kept, and the result if it was computed before."""
        if self.cache is None:
            return b"", None
        name = key(batcher.revision, batcher.engine.device, segment)
        if (kept := self.cache.find(name)) is None:
            return name, None
        found = pb.SegmentResult.FromString(kept)
        found.id, found.cached = segment.id, True
        return name, found

    def answer(self, segment: Segment, result: Result, name: bytes) -> pb.SegmentResult:
        """The message of a result, which is kept under its key. What our own fault spoiled is not."""
        found = pb.SegmentResult(words=wire.timings(result), said=wire.said(result))
        if segment.phones:
            wire.add_phones(found.words, result)
        if (
            self.cache is not None
            and name
            and all(word.reason is not MissingReason.ENGINE_FAILED for word in result.words)
        ):
            self.cache.keep(name, found.SerializeToString())
        found.id = segment.id
        return found

    def report(self, work: Work, model: str, context: Any) -> None:
        """One line in the log and one span for a segment that is over."""
        if not (self.tracer.is_on or log.is_enabled_for(logging.DEBUG)):
            return
        outcome = _outcome(work)
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
            memory_mb=self.guard.memory.used() >> 20,
        )
        self.tracer.segment(work, model, outcome, self.tracer.context(context.invocation_metadata() or ()))


class Stream:
    """One AlignStream call: a reader that accepts segments, and a writer that sends credit and results."""

    def __init__(self, edge: Edge, batcher: Batcher, client: str, context: StreamContext) -> None:
        self.client = client
        self._edge = edge
        self._admission = edge.admission
        self._batcher = batcher
        self._context = context
        self._grant: Grant | None = None
        self._deadline = deadline_of(context)
        self._unanswered: set[Work] = set()
        self._outbox: deque[tuple[pb.SegmentResult | pb.SegmentRefusal, int]] = deque()  # with the audio's length in ms
        self._granted_ms = 0  # to be told; 0 where it was
        self._outbox_ms = 0
        self._changed = asyncio.Event()
        self._held: asyncio.TimerHandle | None = None
        self._failure: Refusal | None = None

    async def run(self) -> None:
        """Serve the stream until the client has no more, or the server drains, and everything is answered."""
        self._grant = grant = self._admission.open(self._credit, self._batcher.window_ms)
        reader = asyncio.create_task(self._read(grant))
        reader.add_done_callback(lambda _: self.wake())
        try:
            while True:
                self._changed.clear()
                self._release()
                while self._outbox or self._granted_ms:
                    # What answers free is granted with them. Only what leaves does: a client that does not
                    # read its results is bounded by its window.
                    answers = [self._outbox.popleft() for _ in range(min(len(self._outbox), MAX_ANSWERS))]
                    self._answered(grant, sum(ms for _, ms in answers))
                    await self._context.write(self._response([answer for answer, _ in answers]))
                if reader.done():
                    reader.result()
                if self._failure:
                    raise self._failure
                if not self._unanswered and (reader.done() or self._edge.draining):
                    break
                await self._changed.wait()
            if not reader.done():
                raise Unavailable("the server is draining; what was sent is answered")
        finally:
            self._release()
            reader.cancel()
            gone, self._unanswered = self._unanswered, set()  # closing gives back what they hold, answers must not
            for work in gone:
                work.future.cancel()
                self._edge.report(work, self._batcher.engine.name, self._context)
            self._admission.close(grant)
            self._grant = None  # which knows this stream: nothing of it is to wait for the garbage collector

    def wake(self) -> None:
        """Something changed that the writer has to look at."""
        self._changed.set()

    def _tell(self) -> None:
        """Let the writer look, at once or, where the client is short of nothing, when there is more to send.

        A message costs each side half a millisecond, in which the embedded model computes a tenth of a second.
        """
        grant = self._grant
        lump_ms = min(LUMP_MS, grant.outstanding_ms // LUMP_SHARE) if grant else 0
        if grant is None or grant.held_ms < lump_ms or self._outbox_ms >= lump_ms:
            self.wake()
        elif self._held is None:
            self._held = asyncio.get_running_loop().call_later(HOLD_S, self.wake)

    def _release(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None

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

    def _answered(self, grant: Grant, ms: int) -> None:
        self._outbox_ms -= ms
        if ms:
            self._admission.answer(grant, ms)

    def _response(self, answers: Sequence[pb.SegmentResult | pb.SegmentRefusal]) -> pb.AlignStreamResponse:
        granted_ms, self._granted_ms = self._granted_ms, 0
        return pb.AlignStreamResponse(
            granted_ms=granted_ms,
            results=[answer for answer in answers if isinstance(answer, pb.SegmentResult)],
            refusals=[answer for answer in answers if isinstance(answer, pb.SegmentRefusal)],
        )

    def _credit(self, total_ms: int) -> None:
        if not self._edge.draining:
            self._granted_ms = total_ms
            self._tell()

    def _send(self, answer: pb.SegmentResult | pb.SegmentRefusal, sent_ms: int) -> None:
        self._outbox.append((answer, sent_ms))
        self._outbox_ms += sent_ms
        self._tell()

    async def _read(self, grant: Grant) -> None:
        while (request := await received(self._context)) is not None:
            if request.HasField("open"):
                raise Invalid("open", "a stream is opened once")
            if request.demand_ms:
                self._admission.demand(grant, request.demand_ms)
            for segment in request.segments:
                await self._accept(segment, grant)

    async def _accept(self, message: pb.Segment, grant: Grant) -> None:
        pcm = message.pcm
        sent_ms = wire.audio_ms(len(pcm))
        await self._admission.room_for(sent_ms)
        if not self._admission.receive(grant, sent_ms):
            raise Invalid("segment.pcm", f"{sent_ms} ms were sent with a credit of {grant.unused_ms} ms")
        try:
            segment = self._edge.segment(message, pcm, self._batcher)
            name, found = self._edge.find(segment, self._batcher)
            if found is not None:
                self._admission.computed(grant, sent_ms)
                self._send(found, sent_ms)
                return
            cost = self._batcher.engine.cost(segment.duration_ms)
            # A stream with one short segment out has somebody waiting for it, as a single call has.
            alone = not self._unanswered and cost <= QUANTUM_MS
            work = Work(segment, self.client, cost, interactive=alone, deadline=self._deadline)
            self._batcher.put(work)
        except Invalid as invalid:
            self._admission.computed(grant, sent_ms)
            self._refuse(message.id, invalid, sent_ms)
        else:
            work.future.add_done_callback(lambda _: self._answer(work, sent_ms, grant, name))
            self._unanswered.add(work)

    def _answer(self, work: Work, sent_ms: int, grant: Grant, name: bytes) -> None:
        if work not in self._unanswered:
            return  # the stream is over, and with it its grant
        self._unanswered.discard(work)
        self._edge.report(work, self._batcher.engine.name, self._context)
        self._admission.computed(grant, sent_ms)
        match work.future.exception():
            case None:
                self._send(self._edge.answer(work.segment, work.future.result(), name), sent_ms)
            case Invalid() | DeadlineTooSoon() as refusal:
                self._refuse(work.segment.id, refusal, sent_ms)
            case Refusal() as refusal:
                self._failure = refusal  # the client sends again what was not answered, here or elsewhere
                self.wake()

    def _refuse(self, segment_id: str, refusal: Refusal, sent_ms: int) -> None:
        self._edge.metrics.refused(refusal.reason)
        field, why = (refusal.field, refusal.description) if isinstance(refusal, Invalid) else ("", str(refusal))
        self._send(pb.SegmentRefusal(id=segment_id, field=field, description=why), sent_ms)


def _outcome(work: Work) -> str:
    if not work.future.done() or work.future.cancelled():
        return "cancelled"
    error = work.future.exception()
    return error.reason if isinstance(error, Refusal) else "failed" if error else "answered"
