"""The one place where refusals and faults become gRPC statuses.

Full -> RESOURCE_EXHAUSTED with RetryInfo and pushback, draining -> UNAVAILABLE, bad fields -> INVALID_ARGUMENT with
BadRequest, unknown model -> NOT_FOUND, a model that cannot be loaded -> FAILED_PRECONDITION, deadline ->
DEADLINE_EXCEEDED, and anything else -> INTERNAL with an error id: its text goes to the log alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING

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
    from collections.abc import AsyncIterator

    from grpc.aio import ServicerContext

log = structlog.get_logger()

CODES: dict[type[Refusal], grpc.StatusCode] = {
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineTooSoon: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    ModelUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
}


@contextlib.asynccontextmanager
async def statuses(context: ServicerContext) -> AsyncIterator[None]:  # type: ignore[type-arg]
    """Turn what is raised inside into a status. A cancellation of our own is UNAVAILABLE, never a hang."""
    try:
        yield
    except Refusal as refusal:
        await _abort(context, CODES[type(refusal)], str(refusal), *_details(refusal))
    except grpc.aio.AbortError:
        raise
    except asyncio.CancelledError:
        if context.cancelled():
            raise
        await _abort(context, grpc.StatusCode.UNAVAILABLE, "the server is stopping")
    except Exception:
        error_id = uuid.uuid4().hex[:12]
        log.exception("request failed", error_id=error_id)
        await _abort(context, grpc.StatusCode.INTERNAL, f"the server failed; its log says why under error {error_id}")


def _details(refusal: Refusal) -> list[message.Message]:
    if isinstance(refusal, Full):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    if isinstance(refusal, Invalid):
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.description)
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    return []


async def _abort(context: ServicerContext, code: grpc.StatusCode, text: str, *details: message.Message) -> None:  # type: ignore[type-arg]
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
    await context.abort(code, text, tuple(metadata))
