"""What a method raises ends the call with a status, and nothing of the call is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from align_server.errors import statuses
from align_server.scheduling.work import Full, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

METHOD = "/test.Service/Refuse"


class Message:
    """A message that can be watched."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Refusing:
    """A service that raises what it is given."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        self.error = error
        self.seen: list[weakref.ref[Message]] = []

    @statuses
    async def refuse(self, request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.seen.append(weakref.ref(request))
        assert context.invocation_metadata() is not None
        raise self.error()


@contextlib.asynccontextmanager
async def served(service: Refusing, socket: Path) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[Any, Any]]:
    """Calls of a server that has nothing but that service."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(service.refuse, request_deserializer=Message)
    server.add_registered_method_handlers("test.Service", {"Refuse": handler})
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield channel.unary_unary(METHOD)
    await server.stop(None)


async def ended(call: grpc.aio.UnaryUnaryMultiCallable[Any, Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"audio")
    return caught.value


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (lambda: Full(1.5, 10, 10), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (lambda: Invalid("segment.pcm", "it is odd"), grpc.StatusCode.INVALID_ARGUMENT, "segment.pcm: it is odd"),
        (lambda: Unavailable("draining"), grpc.StatusCode.UNAVAILABLE, "draining"),
        (asyncio.CancelledError, grpc.StatusCode.UNAVAILABLE, "the server is stopping"),
    ],
    ids=["full", "invalid", "draining", "cancelled"],
)
def test_a_refused_call_is_let_go_at_once(
    error: Callable[[], BaseException], code: grpc.StatusCode, text: str, tmp_path: Path
) -> None:
    async def refused() -> None:
        service = Refusing(error)
        async with served(service, tmp_path / "s") as call:
            gc.collect()
            gc.disable()
            try:
                status = await ended(call)
                await asyncio.sleep(0.05)  # the server's side of the call ends after the client has its status
                assert [seen() for seen in service.seen] == [None]
            finally:
                gc.enable()
        assert status.code() == code
        assert text in str(status.details())

    asyncio.run(refused())


def test_what_failed_is_told_to_the_log_alone(tmp_path: Path) -> None:
    async def refused() -> None:
        async with served(Refusing(lambda: ValueError("a secret")), tmp_path / "s") as call:
            status = await ended(call)
        assert status.code() == grpc.StatusCode.INTERNAL
        assert str(status.details()).startswith("the server failed; its log says why under error ")

    asyncio.run(refused())
