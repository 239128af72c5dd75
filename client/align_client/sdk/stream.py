"""Many segments over one bidirectional stream, within the server's credit, across its restarts.

Whatever was not answered when a stream broke is sent again on the next one. Knows nothing of CHAT.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import grpc

from align_client.sdk import wire
from align_client.sdk.errors import AlignError, ServerUnavailable, from_status
from align_client.sdk.retry import Backoff
from align_client.sdk.types import Transcript, Word
from align_proto.v1 import align_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from align_client.sdk.types import SegmentTimings

    Metadata = tuple[tuple[str, str], ...]

MAX_HELD_MS = 120_000  # audio that waits here, sent or not, about 4 MB: two messages, one of them being computed
MESSAGE_MS = 60_000  # audio that is sent in one message where there is more than one segment...
MESSAGE_SHARE = 3  # ... and the credit has room for as many messages; else this part of it
METHOD = f"/{pb.DESCRIPTOR.services_by_name['AlignService'].full_name}/AlignStream"
MAX_LOSSES = 5  # streams in a row that broke with a segment unanswered before it is given up


@dataclass(eq=False, slots=True)
class _Pending:
    id: str
    pcm: npt.NDArray[np.int16]
    words: Sequence[Word]
    transcribe: str | None
    cost_ms: int
    phones: bool = False
    losses: int = 0
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, result: pb.SegmentResult) -> SegmentTimings | Transcript:
        """What the server found. Raises ServerFault."""
        if self.transcribe is not None:
            return wire.transcript(result.said, result.words)
        return wire.timings(self.words, result.words, cached=result.cached)

    def refusal(self, refusal: pb.SegmentRefusal) -> SegmentTimings | Transcript:
        """The same where the server did not take the segment."""
        if self.transcribe is not None:
            return Transcript(problem=wire.refused([Word("")], refusal)[0].why)
        return wire.refused(self.words, refusal)

    def fail(self, error: AlignError) -> None:
        """Raise the error where the future is awaited, if it is."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # whoever gave up waiting needs no warning of it


class AlignStream:
    """Use as `async with`. Many tasks may submit at once.

    After a lost connection it tries again for `patience_s`; then every future raises ServerUnavailable.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        opening: pb.AlignStreamOpen,
        patience_s: float,
        metadata: Metadata,
    ) -> None:
        self._call: grpc.aio.StreamStreamMultiCallable[bytes, pb.AlignStreamResponse] = channel.stream_stream(
            METHOD, response_deserializer=pb.AlignStreamResponse.FromString
        )
        self._metadata = metadata
        self._address = address
        self._open = opening
        self._patience_s = patience_s
        self._ids = itertools.count(1)
        self._outbox: deque[_Pending] = deque()
        self._unanswered: dict[str, _Pending] = {}
        self._held_ms = 0
        self._unanswered_ms = 0
        self._granted_ms = 0
        self._sent_ms = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._failure: AlignError | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._notify()
        if self._task is not None:
            if kind is not None:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def submit(
        self, pcm: npt.NDArray[np.int16], words: Sequence[Word], *, phones: bool = False
    ) -> asyncio.Future[SegmentTimings]:
        """Hand over one segment, 16 kHz mono int16, and get its future. Waits while too much is held already.

        With `phones` the words come with theirs; a model that has none refuses the segment.
        """
        return await self._submit(_Pending(str(next(self._ids)), pcm, words, None, wire.audio_ms(pcm), phones))

    async def transcribe(self, pcm: npt.NDArray[np.int16], language: str = "") -> asyncio.Future[Transcript]:
        """The same for a segment whose words are to be found; `language` is ISO 639-3, empty for the one heard."""
        return await self._submit(_Pending(str(next(self._ids)), pcm, (), language, wire.audio_ms(pcm)))

    async def _submit(self, pending: _Pending) -> asyncio.Future[Any]:
        await self._wait_for(lambda: self._held_ms < MAX_HELD_MS or self._failure)
        if self._failure:
            raise self._failure
        self._held_ms += pending.cost_ms
        self._outbox.append(pending)
        self._notify()
        pending.future.add_done_callback(lambda _: self._let_go(pending.cost_ms))
        return pending.future

    def _let_go(self, cost_ms: int) -> None:
        self._held_ms -= cost_ms
        self._notify()

    def _notify(self) -> None:
        """Something changed: whoever waits has a look. A condition without its lock, which one loop does not need."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_for(self, predicate: Callable[[], object]) -> None:
        while not predicate():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _is_starved(self) -> bool:
        """Whether no answer is on its way that would bring credit."""
        return not self._unanswered

    def _is_worth_a_message(self) -> bool:
        """Whether to send what there is, or to wait for more credit, as the server has enough to do meanwhile."""
        unused_ms = self._granted_ms - self._sent_ms
        window_ms = unused_ms + self._unanswered_ms
        return self._closing or unused_ms >= min(MESSAGE_MS, window_ms // MESSAGE_SHARE)

    def _can_go_on(self, known_ms: int, *, has_asked: bool) -> bool:
        return self._granted_ms > known_ms or (self._is_starved() and not has_asked)

    async def _run(self) -> None:
        backoff = Backoff(self._patience_s)
        try:
            while not self._closing:
                try:
                    await self._one_stream(backoff)
                except grpc.aio.AioRpcError as error:
                    await asyncio.sleep(backoff.delay(self._lost(from_status(error, self._address))))
                except ServerUnavailable as error:
                    await asyncio.sleep(backoff.delay(self._lost(error)))
        except AlignError as error:
            self._failure = error
        except asyncio.CancelledError:
            self._failure = ServerUnavailable("the stream was closed")
        finally:
            failure = self._failure or ServerUnavailable("the stream was closed")
            for pending in (*self._unanswered.values(), *self._outbox):
                pending.fail(failure)
            self._notify()

    def _lost(self, error: AlignError) -> AlignError:
        """Put what was not answered back at the front, in order; give up what broke too many streams."""
        for pending in reversed(self._unanswered.values()):
            pending.losses += 1
            if pending.losses < MAX_LOSSES:
                self._outbox.appendleft(pending)
            else:
                times = f"{MAX_LOSSES} times while this was being aligned"
                pending.fail(ServerUnavailable(f"the connection was lost {times}: {error}"))
        self._unanswered.clear()
        self._unanswered_ms = 0
        return error

    async def _one_stream(self, backoff: Backoff) -> None:
        self._granted_ms = self._sent_ms = 0
        call = self._call(metadata=self._metadata)
        sender = asyncio.create_task(self._send(call))
        try:
            async for response in call:
                backoff.succeeded()
                self._granted_ms = response.granted_ms or self._granted_ms
                for result in response.results:
                    self._answer(result.id, partial(_Pending.answer, result=result))
                for refusal in response.refusals:
                    self._answer(refusal.id, partial(_Pending.refusal, refusal=refusal))
                self._notify()
            if not self._closing:
                raise ServerUnavailable(f"the server at {self._address} ended the stream")
        finally:
            # The sender must have let go before what is unanswered is put back into the outbox.
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    def _answer(self, segment_id: str, found: Callable[[_Pending], object]) -> None:
        pending = self._unanswered.pop(segment_id, None)
        if pending is None:
            return
        self._unanswered_ms -= pending.cost_ms
        if not pending.future.done():
            pending.future.set_result(found(pending))

    async def _send(self, call: grpc.aio.StreamStreamCall[bytes, pb.AlignStreamResponse]) -> None:
        """Send what the credit allows, in order; ask where the next segment needs more and no answer will bring it."""
        await call.write(pb.AlignStreamRequest(open=self._open).SerializeToString())
        asked_for: _Pending | None = None
        while True:
            await self._wait_for(lambda: self._outbox or self._closing)
            while self._outbox and self._outbox[0].future.done():
                self._outbox.popleft()  # nobody waits for it any more
            if not self._outbox:
                if self._closing:
                    await call.done_writing()
                    return
                continue
            head = self._outbox[0]
            if self._granted_ms - self._sent_ms < head.cost_ms:
                granted_ms = self._granted_ms
                if self._is_starved() and asked_for is not head:
                    asked_for = head
                    await call.write(pb.AlignStreamRequest(demand_ms=head.cost_ms).SerializeToString())
                await self._wait_for(partial(self._can_go_on, granted_ms, has_asked=asked_for is head))
                continue
            await self._wait_for(self._is_worth_a_message)
            if request := self._next_request():
                await call.write(request)

    def _next_request(self) -> bytes:
        """The next segments that the credit allows: one, or several that are short. Empty for none."""
        segments: list[tuple[pb.Segment, npt.NDArray[np.int16]]] = []
        together_ms = 0
        while self._outbox:
            head = self._outbox[0]
            if self._granted_ms - self._sent_ms < head.cost_ms or (
                together_ms and together_ms + head.cost_ms > MESSAGE_MS
            ):
                break
            self._outbox.popleft()
            if head.future.done():
                continue  # nobody waits for it any more
            self._sent_ms += head.cost_ms
            self._unanswered[head.id] = head
            self._unanswered_ms += head.cost_ms
            asked = pb.Segment()
            wire.describe(asked, head.id, head.words, transcribe=head.transcribe, phones=head.phones)
            segments.append((asked, head.pcm))
            together_ms += head.cost_ms
        return wire.request(segments)
