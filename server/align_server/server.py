"""The life of a server: run > serve > startup > main_loop > shutdown.

Owns the gRPC server, the lock, the models and the signals; knows nothing of what is in a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from align_proto.v1 import align_pb2, align_pb2_grpc
from align_server import __version__
from align_server.engines import registry
from align_server.engines.engine import EngineLoadError
from align_server.lock import AddressLock, LockedError, UnsafeFolderError, private_folder
from align_server.scheduling.admission import Admission, Throughput
from align_server.scheduling.residents import ModelState, Residents
from align_server.service import MAX_MESSAGE_BYTES, AlignService

if TYPE_CHECKING:
    from align_server.config import Config

SERVICE = align_pb2.DESCRIPTOR.services_by_name["AlignService"].full_name
DRAIN_POLL_S = 0.02
STOP_GRACE_S = 1.0  # for streams to end by themselves once everything is answered

log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the message says what was found and what to do."""


class Server:
    """One server at one address. `run` returns when it has stopped."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._signals: list[int] = []
        self._stopping = asyncio.Event()
        self._lock = AddressLock(config.lock_path)
        self._socket_inode: int | None = None
        self._throughput = Throughput()
        self._admission = Admission(config.max_queued_ms, self._throughput)
        self._health = health.aio.HealthServicer()
        self._residents = Residents(
            config.models,
            self._throughput,
            config.lane_count(),
            make=lambda name: registry.create(name, config.device),
            on_state=self._publish,
        )
        self._service = AlignService(
            self._residents, self._admission, self._throughput, device=config.device, max_words=config.max_words
        )
        self._publishing: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Serve until a signal. Raises StartError; ends with the signal's own exit status."""
        try:
            import uvloop  # noqa: PLC0415  not there on Windows
        except ImportError:
            asyncio.run(self.serve())
        else:
            uvloop.run(self.serve())
        for number in reversed(self._signals):
            # Raised again with the default handler back in place, so that the exit status tells of it.
            signal.raise_signal(number)

    async def serve(self) -> None:
        """The whole life, inside a running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self.startup()
            await self.main_loop()
            await self.shutdown()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self) -> None:
        """Lock, bind, say NOT_SERVING, load, say SERVING. Raises StartError."""
        try:
            private_folder(self.config.lock_path.parent)
            self._lock.acquire()
        except (LockedError, UnsafeFolderError, OSError) as error:
            raise StartError(str(error)) from error
        started = time.monotonic()
        log.info("starting", version=__version__, address=self.config.address, pid=os.getpid())
        for name in ("", *self.config.models):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._bind()
        loading = asyncio.create_task(self._residents.load())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            return
        try:
            loading.result()
        except EngineLoadError as error:
            await self.shutdown()
            raise StartError(str(error)) from error
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", models=list(self.config.models), seconds=round(time.monotonic() - started, 2))

    async def main_loop(self) -> None:
        """Wait for the first signal."""
        await self._stopping.wait()

    async def shutdown(self) -> None:
        """Drain: say NOT_SERVING, answer what was taken, then stop. A second signal forces the exit."""
        log.info("draining", queued_ms=self._admission.held_ms)
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        deadline = time.monotonic() + self.config.drain_s
        while (self._admission.held_ms or self._admission.streams) and time.monotonic() < deadline:  # noqa: ASYNC110  two counters of two modules
            await asyncio.sleep(DRAIN_POLL_S)
        await self._server.stop(STOP_GRACE_S)
        await self._residents.stop()
        self._remove_socket()
        self._lock.release()
        log.info("stopped", segments=self._throughput.segments_done, audio_s=self._throughput.audio_done_ms // 1000)

    async def _bind(self) -> None:
        interceptors = [_TokenInterceptor(self.config.token)] if self.config.listen else []
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.so_reuseport", 0),  # else a second server on the port would succeed and share it
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.server_handshake_timeout_ms", 5_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        align_pb2_grpc.add_AlignServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        try:
            self._server.add_insecure_port(self.config.address)
        except RuntimeError as error:
            self._lock.release()
            raise StartError(f"cannot listen on {self.config.address}: {error}") from error
        await self._server.start()
        if not self.config.listen:
            self.config.socket.chmod(0o600)
            self._socket_inode = self.config.socket.stat().st_ino

    def _remove_socket(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._socket_inode is not None and self.config.socket.stat().st_ino == self._socket_inode:
                self.config.socket.unlink()

    def _publish(self, model: str, state: ModelState) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if state is ModelState.SERVING else health_pb2.HealthCheckResponse.NOT_SERVING
        task = asyncio.get_running_loop().create_task(self._health.set(model, status))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) > 1 and number == signal.SIGINT:
            self._remove_socket()
            sys.stderr.write("stopped without draining\n")
            os._exit(128 + number)
        self._stopping.set()


class _TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets in only calls that carry the token. A unix socket needs none: its folder is private."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Pass the call on, or answer it with UNAUTHENTICATED."""
        given = dict(handler_call_details.invocation_metadata).get("authorization", "")
        if hmac.compare_digest(str(given).encode(), self._expected.encode()):
            return await continuation(handler_call_details)
        # Status codes of streams and of single calls are told apart by the handler's shape alone.
        handler = await continuation(handler_call_details)
        if handler is not None and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong; set ALIGN_TOKEN")
