"""The asynchronous client: one channel to one server.

>>> async with AsyncClient() as client:
...     result = await client.align("talk.wav", ["she", "had", "your", "dark", "suit"], language="eng")
...     print(result.words[0])
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from align_client.media.stream import SAMPLE_RATE, from_array, read
from align_client.sdk import wire
from align_client.sdk.address import default_address, default_socket
from align_client.sdk.errors import AccessDenied, DeadlineExceeded, ServerBusy, VersionMismatch, from_status
from align_client.sdk.retry import Backoff
from align_client.sdk.stream import AlignStream
from align_client.sdk.types import AlignResult, ModelInfo, Place, ServerInfo, Transcript, Word, WordTiming
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from align_client.corpus import FileReport

PROTOCOL_REVISION = 1  # the newest that this client can use, and the oldest that it can do with
DEFAULT_TIMEOUT_S = 300.0
CONTROL_TIMEOUT_S = 10.0  # for calls that compute nothing
BUFFERS = 16 * 2**20  # bytes: a message at its longest
PATIENCE_S = 60.0  # how long a stream waits for a server that went away
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", 16 * 2**20),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.use_local_subchannel_pool", 1),
]


class AsyncClient:
    """A connection to an align-server. Use as `async with`.

    `address` is a gRPC target (`unix:/path/to.sock`, `host:port`), by default `$ALIGN_SERVER`, else this user's
    own socket. `timeout` is in seconds for each call. `model` is used where a call names none.
    Calls raise the errors of `align_client.sdk.errors`, and MediaError for audio that cannot be read.
    """

    def __init__(self, address: str | None = None, timeout: float | None = None, model: str | None = None) -> None:
        self.address = address or default_address()
        self.timeout = DEFAULT_TIMEOUT_S if timeout is None else timeout
        self.model = model or ""
        self._channel: grpc.aio.Channel | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(address={self.address!r}, timeout={self.timeout!r}, model={self.model!r})"

    async def __aenter__(self) -> Self:
        self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; a later call opens it again."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def align(  # noqa: PLR0913  what may be said of a segment, by name
        self,
        audio: str | os.PathLike[str] | npt.NDArray[np.generic],
        words: Sequence[str | Word],
        *,
        language: str = "",
        sample_rate: int | None = None,
        model: str | None = None,
        phones: bool = False,
    ) -> AlignResult:
        """Align words to their audio: a path, or a mono array (int16 or float) with `sample_rate` in Hz.

        With `phones` the words come with theirs; raises RequestRefused where the model has none.
        """
        if isinstance(audio, str | os.PathLike):
            pcm = await asyncio.to_thread(read, Path(audio))
        elif sample_rate is None:
            raise TypeError("an array of samples needs its sample_rate")
        else:
            pcm = await asyncio.to_thread(from_array, audio, sample_rate)
        items = [word if isinstance(word, Word) else Word(word, language) for word in words]
        request = pb.AlignRequest(model=self.model if model is None else model)
        wire.fill(request.segment, "", pcm, items, phones=phones)
        deadline = time.monotonic() + self.timeout
        backoff = Backoff(self.timeout)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"no answer from {self.address} within {self.timeout:g} s")
            try:
                given = (
                    *_metadata(),
                    ("align-client", _client()),
                    ("align-attempt", str(backoff.attempt)),
                    ("align-audio-ms", str(1000 * len(pcm) // SAMPLE_RATE)),
                )
                response = await self._connect().Align(request, timeout=left, metadata=given)
            except grpc.aio.AioRpcError as error:
                failure = from_status(error, self.address)
                if not isinstance(failure, ServerBusy):
                    # A single call to a server that is not there fails at once: the user waits for the message.
                    raise failure from None
                await asyncio.sleep(backoff.delay(failure))
            else:
                return AlignResult(wire.timings(items, response.words), response.model, response.cached)

    async def align_chat(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> FileReport:
        """Align one CHAT file and write the result to `target`. The report says what was and what was not aligned."""
        from align_client.corpus import Corpus, Job, Options  # noqa: PLC0415  corpus stands above the SDK

        corpus = Corpus(self, Options())
        return (await corpus.run([Job(Path(source), Path(target))]))[0]

    async def transcribe(self, audio: str | os.PathLike[str], language: str = "") -> Transcript:
        """The words of a recording of any length; `language` is ISO 639-3, empty for the one that is heard.

        The model is the client's, or the server's first that can find words; raises RequestRefused without one.
        """
        from align_client.recognition import recognise  # noqa: PLC0415  it stands above the SDK

        recording = await recognise(self, Path(audio), language)
        words = tuple(
            WordTiming(word.text, word.start_ms / 1000, word.end_ms / 1000, word.score) for word in recording.words
        )
        return Transcript(words, recording.language, "; ".join(gap.why for gap in recording.gaps))

    async def locate(
        self, pieces: AsyncIterable[npt.NDArray[np.int16]], utterances: Sequence[Sequence[Word]]
    ) -> list[Place | None]:
        """Where in a recording of any length each utterance is said; None for one that was not found.

        `pieces` are the recording, front to back, at 16 kHz; they are asked for no faster than the server computes.
        The utterances are in the order in which they are said; between them anything may be.
        """

        async def requests() -> AsyncIterator[pb.LocateRequest]:
            opening = pb.LocateRequest(open=pb.LocateOpen(model=self.model, client=_client()))
            for words in utterances:
                wire.add_words(opening.open.utterances.add(), words)
            yield opening
            # Nothing is on its way while the server may refuse: what that says would be lost with a message that comes
            # too late, https://github.com/grpc/grpc/issues/36066.
            if await call.initial_metadata():
                async for piece in pieces:
                    yield pb.LocateRequest(pcm=piece.tobytes())

        call = self._connect().Locate(requests(), metadata=_metadata())
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None
        return [
            Place(one.start_ms / 1000, one.end_ms / 1000, one.score) if one.HasField("start_ms") else None
            for one in response.places
        ]

    async def models(self) -> list[ModelInfo]:
        """The models that the server can serve."""
        response = await self._control(lambda stub, **rest: stub.ListModels(pb.ListModelsRequest(), **rest))
        return [wire.model_info(model) for model in response.models]

    async def load_model(self, model: str) -> ModelInfo:
        """Load a model that the server was started with, and wait until it serves. Raises ModelUnavailable."""
        request = pb.LoadModelRequest(model=model)
        response = await self._control(lambda stub, **rest: stub.LoadModel(request, **rest), self.timeout)
        return wire.model_info(response.model)

    async def unload_model(self, model: str) -> None:
        """Let the server give a model's memory back. Raises ModelUnavailable while it is in use."""
        request = pb.UnloadModelRequest(model=model)
        await self._control(lambda stub, **rest: stub.UnloadModel(request, **rest), self.timeout)

    async def info(self) -> ServerInfo:
        """What the server is and how busy. Raises VersionMismatch where it is too old or too new."""
        response = await self._control(lambda stub, **rest: stub.GetServerInfo(pb.GetServerInfoRequest(), **rest))
        if response.protocol_revision != PROTOCOL_REVISION:
            raise VersionMismatch(
                f"the server at {self.address} is chatalign {response.version}, protocol {response.protocol_revision}; "
                f"this client needs protocol {PROTOCOL_REVISION}: install the same version on both sides "
                "and restart the server"
            )
        return wire.server_info(self.address, response)

    async def is_serving(self) -> bool:
        """Whether the server's health check says that it serves. Raises ServerUnavailable where none answers."""
        self._connect()
        health = health_pb2_grpc.HealthStub(self._channel)
        try:
            answer = await health.Check(
                health_pb2.HealthCheckRequest(), timeout=CONTROL_TIMEOUT_S, metadata=_metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def stream(self, model: str | None = None, patience_s: float = PATIENCE_S) -> AlignStream:
        """Many segments over one stream, for bulk work."""
        opening = pb.AlignStreamOpen(model=self.model if model is None else model, client=_client())
        return AlignStream(self._connected(), self.address, opening, patience_s, _metadata())

    async def _control(self, call: Callable[..., grpc.aio.UnaryUnaryCall], timeout: float = CONTROL_TIMEOUT_S) -> Any:  # type: ignore[type-arg]  # noqa: ASYNC109  gRPC's own
        try:
            return await call(self._connect(), timeout=timeout, metadata=_metadata())
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            _check_owner(self.address)
            _keep_buffers()
            self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
            self._stub = AlignServiceStub(self._channel)
        return self._channel

    def _connect(self) -> AlignServiceStub:
        self._connected()
        return self._stub


def _client() -> str:
    """What the server calls this process."""
    return f"{platform.node()}:{os.getpid()}"


def _metadata() -> tuple[tuple[str, str], ...]:
    token = os.environ.get("ALIGN_TOKEN")
    return (("authorization", f"Bearer {token}"),) if token else ()


def _keep_buffers() -> None:
    """Let glibc keep the buffers of messages for the next ones, which it would map and fault in anew for each.

    It keeps freed blocks up to the size of the largest that was ever mapped and freed. Memory that is not touched is
    never given; elsewhere nothing happens. Sending half a megabyte takes a quarter of the CPU after it.
    """
    bytes(BUFFERS)  # asked for zeroed, and so not touched


def _check_owner(address: str) -> None:
    """Another user could have made the default folder first, to be sent our recordings. Raises AccessDenied."""
    folder = default_socket().parent
    if address == f"unix:{default_socket()}" and folder.exists() and folder.stat().st_uid != os.getuid():
        raise AccessDenied(f"{folder} belongs to another user; start a server with --socket in a folder of your own")
