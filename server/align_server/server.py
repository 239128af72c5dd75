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

from align_server import __version__
from align_server.cache import ResultCache
from align_server.config import SMALLEST_QUEUE_MS
from align_server.engines import registry
from align_server.engines.engine import EngineLoadError
from align_server.errors import Unauthenticated, statuses
from align_server.lock import AddressLock, LockedError, UnsafeFolderError, private_folder
from align_server.metrics import Metrics
from align_server.scheduling.admission import Admission
from align_server.scheduling.learnt import Learnt
from align_server.scheduling.memory import MemoryGuard, ProcessMemory
from align_server.scheduling.pools import Pools
from align_server.scheduling.residents import ModelState, Residents
from align_server.service import MAX_MESSAGE_BYTES, SERVICE, AlignService
from align_server.stream import Edge
from align_server.tracing import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.config import Config
    from align_server.engines.engine import Engine
    from align_server.metrics import Reading

DRAIN_POLL_S = 0.02
SWITCH_S = 0.001  # for which a thread that computes in Python may keep the event loop from the interpreter's lock
KEPT_BYTES = 31 * 2**20  # blocks of that size are used again instead of mapped and faulted in anew: glibc's most is 32
HOUSEKEEPING_S = 1.0
GPU_SHARE = 0.9  # of a GPU's memory, for models and batches
SCRAPE_S = 5.0  # for the event loop to answer who reads the metrics
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
        self._guard = MemoryGuard(config.memory_limit(), ProcessMemory())
        self._gpus: dict[str, MemoryGuard] = {}
        self._admission = Admission(lambda: min(config.max_queued_ms, max(SMALLEST_QUEUE_MS, self._guard.queue_ms)))
        self._health = health.aio.HealthServicer()
        self._metrics = Metrics()
        self._tracer = Tracer()
        self._pools = Pools.of(config.preprocess_count(), config.decode_count())
        self._residents = Residents(
            [self._describe(name) for name in config.models],
            make=lambda name: registry.create(name, config.device, config.precision),
            fetch=lambda name, progress: registry.fetch(name, progress, config.device),
            lanes=lambda engine: engine.replicas * config.lane_count(engine.device),
            guard=self._guard_for,
            learnt=Learnt(config.state_dir / "learnt.json"),
            pools=self._pools,
            metrics=self._metrics,
            on_state=self._publish,
            pipelined=lambda engine: config.pipelined(engine.device),
            held_ms=lambda: self._admission.held_ms,
            idle_s=config.idle_unload_s,
        )
        self._edge = Edge(self._admission, self._guard, self._metrics, self._tracer, config.max_words)
        self._service = AlignService(self._residents, self._edge, device=config.device)
        self._stop_metrics: Callable[[], None] = lambda: None
        self._publishing: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Serve until a signal. Raises StartError; ends with the signal's own exit status."""
        sys.setswitchinterval(SWITCH_S)
        bytes(KEPT_BYTES)  # glibc keeps freed blocks up to the size of the largest that was mapped: none is touched
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
        """Lock, bind, say NOT_SERVING, load, say SERVING. Raises StartError.

        Loading may be downloading, and take hours: what is loaded serves meanwhile.
        """
        try:
            private_folder(self.config.lock_path.parent)
            self._lock.acquire()
        except (LockedError, UnsafeFolderError, OSError) as error:
            raise StartError(str(error)) from error
        started = time.monotonic()
        if self.config.cache_mb:
            self._edge.cache = ResultCache(self.config.cache_dir, self.config.cache_mb)
        log.info("starting", version=__version__, address=self.config.address, pid=os.getpid())
        for name in ("", *self.config.models):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._serve_metrics()
        await self._bind()
        self._house = asyncio.create_task(self._keep_house())
        loading = asyncio.create_task(self._residents.load_all())
        await asyncio.wait({loading, self._house}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return
        try:
            loading.result()
        except EngineLoadError as error:
            self._stopping.set()
            await self._house
            await self.shutdown()
            raise StartError(str(error)) from error
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", models=list(self.config.models), seconds=round(time.monotonic() - started, 2))

    async def main_loop(self) -> None:
        """Wait for the first signal."""
        await self._house

    async def _keep_house(self) -> None:
        """Until the first signal."""
        while not self._stopping.is_set():
            self._admission.refresh()
            await self._residents.refresh()
            await asyncio.to_thread(self._guard.relieve)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), HOUSEKEEPING_S)

    async def shutdown(self) -> None:
        """Drain: say NOT_SERVING, answer what was taken, then stop. A second signal forces the exit."""
        log.info("draining", queued_ms=self._admission.held_ms)
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        deadline = time.monotonic() + self.config.drain_s
        while (self._admission.unanswered_ms or self._admission.streams) and time.monotonic() < deadline:  # noqa: ASYNC110  two counters of two modules
            await asyncio.sleep(DRAIN_POLL_S)
        await self._server.stop(STOP_GRACE_S)
        await self._residents.stop()
        await asyncio.to_thread(self._pools.shutdown)
        if self._edge.cache is not None:
            await asyncio.to_thread(self._edge.cache.close)
        await asyncio.to_thread(self._stop_metrics)
        await asyncio.to_thread(self._tracer.stop)
        self._remove_socket()
        self._lock.release()
        log.info("stopped", segments=self._residents.segments_done, audio_s=self._residents.audio_done_ms // 1000)

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
        self._service.add_to(self._server)
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

    def _describe(self, name: str) -> registry.ModelDescription:
        try:
            return registry.describe(name)
        except EngineLoadError as error:
            raise StartError(str(error)) from error

    def _guard_for(self, engine: Engine) -> MemoryGuard:
        """The memory that an engine lives in: the process's, or that of its GPUs."""
        if not engine.device.startswith("cuda"):
            return self._guard
        if engine.device not in self._gpus:
            from align_server.engines.device import CudaMemory  # noqa: PLC0415  imports torch

            memory = CudaMemory(engine.device)
            self._gpus[engine.device] = MemoryGuard(int(GPU_SHARE * memory.total()), memory, queue_share=0.0)
        return self._gpus[engine.device]

    def _serve_metrics(self) -> None:
        if self.config.metrics:
            loop = asyncio.get_running_loop()
            self._metrics.watch(lambda: asyncio.run_coroutine_threadsafe(self._readings(), loop).result(SCRAPE_S))
            try:
                self._stop_metrics = self._metrics.serve(*self.config.metrics_address)
            except OSError as error:
                self._lock.release()
                raise StartError(f"cannot serve metrics on {self.config.metrics}: {error}") from error
            log.info("metrics", address=f"http://{self.config.metrics}/metrics")

    async def _readings(self) -> list[Reading]:
        """The gauges, read on the event loop: in any other thread what they count would change meanwhile."""
        return list(self._service.readings())

    def _remove_socket(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._socket_inode is not None and self.config.socket.stat().st_ino == self._socket_inode:
                self.config.socket.unlink()

    def _publish(self, model: str, state: ModelState) -> None:
        # A model that was unloaded for want of use is loaded again by whoever asks for it.
        ready = state in {ModelState.SERVING, ModelState.AVAILABLE}
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
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
            return grpc.stream_stream_rpc_method_handler(self._refuse)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    @statuses
    async def _refuse(self, _request: Any, _context: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise Unauthenticated("the token is missing or wrong; set ALIGN_TOKEN")
