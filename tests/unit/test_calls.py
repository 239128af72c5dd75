"""What a method raises ends its call with a status; and of a call that has ended nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from align_server.errors import statuses
from align_server.scheduling.work import Full, Invalid, Unavailable
from align_server.stream import received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SERVICE, METHOD = "test.Service", "Take"


class Taking:
    """Takes one message of those that come, and answers, or raises what it was given."""

    def __init__(self, error: Callable[[], BaseException] | None = None) -> None:
        self.error = error

    @statuses
    async def take(self, _messages: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        message = await received(context)
        assert message is not None
        if self.error is not None:
            raise self.error()
        return message


@contextlib.asynccontextmanager
async def served(service: Taking, socket: Path) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
    """Calls of a server that has nothing but that method."""
    server = grpc.aio.server()
    handler: Any = grpc.stream_unary_rpc_method_handler(service.take)
    server.add_registered_method_handlers(SERVICE, {METHOD: handler})
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield channel.unary_unary(f"/{SERVICE}/{METHOD}")
    await server.stop(None)


@contextlib.contextmanager
def uncollected() -> Any:
    """The garbage collector finds no circles meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def ended(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"audio")
    return caught.value


async def calls_left() -> int:
    """Calls that gRPC's server still knows a moment after the client has the status."""
    await asyncio.sleep(0.05)
    return sum(type(one).__name__ == "_ServicerContext" for one in gc.get_objects())


async def test_of_an_answered_call_nothing_is_left(tmp_path: Path) -> None:
    async with served(Taking(), tmp_path / "s") as call:
        with uncollected():
            assert await call(b"audio") == b"audio"
            assert not await calls_left()


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
async def test_of_a_refused_call_nothing_is_left(
    error: Callable[[], BaseException], code: grpc.StatusCode, text: str, tmp_path: Path
) -> None:
    async with served(Taking(error), tmp_path / "s") as call:
        with uncollected():
            status = await ended(call)
            assert not await calls_left()
    assert status.code() == code
    assert text in str(status.details())


async def test_what_failed_is_told_to_the_log_alone(tmp_path: Path) -> None:
    async with served(Taking(lambda: ValueError("a secret")), tmp_path / "s") as call:
        status = await ended(call)
    assert status.code() == grpc.StatusCode.INTERNAL
    assert str(status.details()).startswith("the server failed; its log says why under error ")
