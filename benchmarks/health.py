"""How long the health check takes, asked a hundred times a second: by itself, and under saturating load."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import processes
from clients import CLIENTS, Flood
from inputs import utterances
from rows import Row, Scale, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

PER_SECOND = 100
TIMES, WORST_MS = 10, 50  # of the p99 without load, and at most


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    seconds = scale.of(5.0, 15.0)
    with (
        processes.server() as server,
        processes.Crew(make_prober, [(server.address, seconds)]) as prober,
    ):
        prober.turn()
        idle = prober.turn().answers[0]
        with Flood(server.address, utterances()) as flood:
            before, started = flood.audio_s(), time.perf_counter()
            loaded = prober.turn().answers[0]
            rate = (flood.audio_s() - before) / (time.perf_counter() - started)
    limit = min(TIMES * percentile(idle, 99), WORST_MS / 1000)
    met = percentile(loaded, 99) <= limit and max(loaded) <= WORST_MS / 1000
    return [
        Row("health check without load, 100 a second", _said(idle)),
        Row(
            f"health check beside {CLIENTS} clients that send all they can ({rate:.0f} audio seconds per second)",
            _said(loaded),
            f"p99 at most {TIMES} times that without load ({1000 * TIMES * percentile(idle, 99):.1f} ms), "
            f"never above {WORST_MS} ms",
            met,
        ),
    ]


def make_prober(address: str, seconds: float) -> Callable[[], list[float]]:
    """Checks for so long, whether the check before is answered or not; answers with the seconds that each took."""
    runner = asyncio.Runner()

    async def probe() -> list[float]:
        async with grpc.aio.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest()

            async def one() -> float:
                started = time.perf_counter()
                answer = await check(request, timeout=30)
                took = time.perf_counter() - started
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                return took

            await one()
            started = time.perf_counter()
            tasks = []
            for number in range(int(seconds * PER_SECOND)):
                await asyncio.sleep(max(0.0, started + number / PER_SECOND - time.perf_counter()))
                tasks.append(asyncio.create_task(one()))
            return list(await asyncio.gather(*tasks))

    return lambda: runner.run(probe())


def _said(seconds: list[float]) -> str:
    p50, p99, worst = (1000 * value for value in (percentile(seconds, 50), percentile(seconds, 99), max(seconds)))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {worst:.1f} ms ({len(seconds)} checks)"
