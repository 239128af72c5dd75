"""The one place where refusals and faults become gRPC statuses.

Full -> RESOURCE_EXHAUSTED with RetryInfo and pushback, draining -> UNAVAILABLE, bad fields -> INVALID_ARGUMENT with
BadRequest, unknown model -> NOT_FOUND, a model that cannot be loaded -> FAILED_PRECONDITION, deadline ->
DEADLINE_EXCEEDED, no token -> UNAUTHENTICATED, and anything else -> INTERNAL with an error id: its text goes to the log
alone.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from align_server.scheduling.work import (
    DeadlineTooSoon,
    Full,
    Invalid,
    ModelUnavailable,
    Refusal,
    Unavailable,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from grpc.aio import ServicerContext

Service = TypeVar("Service")
Given = TypeVar("Given")
Answer = TypeVar("Answer")
Context = TypeVar("Context", bound="ServicerContext[Any, Any]")

log = structlog.get_logger()


class Unauthenticated(Refusal):
    """The call does not carry the token."""

    reason = "unauthenticated"


CODES: dict[type[Refusal], grpc.StatusCode] = {
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineTooSoon: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    ModelUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
}


def statuses(
    handler: Callable[[Service, Given, Context], Awaitable[Answer]],
) -> Callable[[Service, Given, Context], Coroutine[Any, Any, Answer]]:
    """Turn what a method raises into a status. A cancellation of our own is UNAVAILABLE, never a hang."""

    @functools.wraps(handler)
    async def answer(service: Service, given: Given, context: Context) -> Answer:
        try:
            return await handler(service, given, context)
        except Refusal as refusal:
            code, text, details = CODES[type(refusal)], str(refusal), _details(refusal)
        except asyncio.CancelledError:
            if context.cancelled():
                raise
            code, text, details = grpc.StatusCode.UNAVAILABLE, "the server is stopping", []
        except Exception:
            error_id = uuid.uuid4().hex[:12]
            log.exception("request failed", error_id=error_id)
            code, details = grpc.StatusCode.INTERNAL, []
            text = f"the server failed; its log says why under error {error_id}"
        try:
            await context.abort(code, text, _metadata(code, text, details))
        finally:
            # gRPC keeps the error that abort() raises in the call. If the error knew the call by this frame, both would
            # stay, and what was received of the message, until the garbage collector finds the circle.
            del given, context

    return answer


def _details(refusal: Refusal) -> list[message.Message]:
    if isinstance(refusal, Full):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    if isinstance(refusal, Invalid):
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.description)
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    return []


def _metadata(
    code: grpc.StatusCode, text: str, details: Sequence[message.Message]
) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with a status."""
    metadata: list[tuple[str, str | bytes]] = []
    if details:
        packed = []
        for detail in details:
            holder = any_pb2.Any()
            holder.Pack(detail)
            packed.append(holder)
            if isinstance(detail, error_details_pb2.RetryInfo):
                metadata.append(("grpc-retry-pushback-ms", str(detail.retry_delay.ToMilliseconds())))
        status = status_pb2.Status(code=code.value[0], message=text, details=packed)
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(metadata)
