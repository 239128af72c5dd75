"""What can go wrong between a client and its server, and the one mapping from gRPC statuses.

AlignError
├── ServerUnavailable    no server answers, or it is stopping
├── ServerBusy           the server has no room; `retry_after_s` says when it should
├── DeadlineExceeded     the result did not come within the timeout
├── VersionMismatch      the server speaks another version of the contract
├── AccessDenied         the token is missing or wrong, or the socket belongs to someone else
├── RequestRefused       the request cannot be used; `field` says which part
│   └── UnknownModel     the server does not serve that model
├── ModelUnavailable     the model cannot be loaded now, or not unloaded while it is in use
└── ServerFault          a fault in the server; the message carries the error id in its log
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

CUT_OFF = "Internal error from Core"  # gRPC's own words where a server dies during a write; ours carry an error id

M = TypeVar("M", bound="Message")


class AlignError(Exception):
    """Something went wrong with a request; the message says what and what to do."""


class ServerUnavailable(AlignError):  # noqa: N818  named by what the user sees
    """No server answers at this address, or the one there is stopping."""


class ServerBusy(AlignError):  # noqa: N818
    """The server has no room now."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(AlignError):  # noqa: N818
    """The result did not come in time."""


class VersionMismatch(AlignError):  # noqa: N818
    """Client and server are of versions that cannot work together."""


class AccessDenied(AlignError):  # noqa: N818
    """The server does not let this client in."""


class RequestRefused(AlignError):  # noqa: N818
    """The request cannot be used as it is."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(RequestRefused):
    """The server does not serve that model."""


class ModelUnavailable(AlignError):  # noqa: N818
    """The model cannot be loaded, or cannot be unloaded while it is in use."""


class ServerFault(AlignError):  # noqa: N818
    """The server failed on this request."""


def from_status(error: grpc.aio.AioRpcError, address: str) -> AlignError:  # noqa: PLR0911  one return a status
    """The error that a status stands for."""
    text = error.details() or ""
    if text == CUT_OFF:
        return ServerUnavailable(f"the connection to {address} broke while a message was being sent")
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            # gRPC names the address three times before it says what is the matter.
            matter = text.rpartition(": ")[2] if text.startswith("failed to connect") else text
            return ServerUnavailable(
                f"no server answers at {address} ({matter}); start one with `align-server start`, "
                "or give its address with --server or $ALIGN_SERVER"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            retry = detail(error, error_details_pb2.RetryInfo)
            wait = None if retry is None else retry.retry_delay.ToMilliseconds() / 1000
            return ServerBusy(f"the server at {address} is full: {text}", wait)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"no answer from {address} within the timeout ({text})")
        case grpc.StatusCode.UNIMPLEMENTED:
            return VersionMismatch(
                f"the server at {address} does not speak this client's version of the protocol ({text}); "
                "install the same version of chatalign on both sides and restart the server"
            )
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return AccessDenied(f"the server at {address} refused access: {text}")
        case grpc.StatusCode.NOT_FOUND:
            return UnknownModel(text, "model")
        case grpc.StatusCode.FAILED_PRECONDITION:
            return ModelUnavailable(f"the server at {address} says: {text}")
        case grpc.StatusCode.INVALID_ARGUMENT:
            bad = detail(error, error_details_pb2.BadRequest)
            return RequestRefused(text, bad.field_violations[0].field if bad and bad.field_violations else "")
        case code:
            return ServerFault(f"the server at {address} failed ({code.name}): {text}")


def detail(error: grpc.aio.AioRpcError, kind: type[M]) -> M | None:
    """The rich detail of that kind which the status carries, if any."""
    metadata = dict(error.trailing_metadata() or ())
    packed = metadata.get("grpc-status-details-bin")
    if not isinstance(packed, bytes):
        return None
    for item in status_pb2.Status.FromString(packed).details:
        message = kind()
        if item.Unpack(message):
            return message
    return None
