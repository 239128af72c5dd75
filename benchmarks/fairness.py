"""How long a small client waits, with one segment of 5 s at a time: alone, and beside one that never stops sending."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import processes
from align_client import AsyncClient, Client
from clients import Flood, requests
from inputs import Utterance, lasting, utterances
from rows import Row, Scale, percentile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from clients import Request

SEGMENT_S = 5.0
TIMES = 2  # of the wait alone, and one batch
WARM = 5
ROADS = ("over a stream", "as single calls")


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = utterances()
    small = lasting(SEGMENT_S, said)
    with (
        processes.server() as server,
        processes.Crew(make_small, [(server.address, small, scale.of(50, 150))]) as crew,
    ):
        alone = crew.turn().answers[0]
        with Flood(server.address, said, clients=1):
            beside = crew.turn().answers[0]
            with Client(server.address) as client:
                batch_s = processes.batch_s(client)
    rows = []
    for road in ROADS:
        limit = TIMES * percentile(alone[road], 95) + batch_s
        rows.append(
            Row(
                f"a client with one segment of {SEGMENT_S:g} s at a time, {road}: alone, beside one that floods",
                f"{_said(alone[road])}; {_said(beside[road])}",
                f"p95 at most {TIMES} times alone and a batch, which takes {1000 * batch_s:.0f} ms: "
                f"{1000 * limit:.0f} ms",
                percentile(beside[road], 95) <= limit,
            )
        )
    return rows


def make_small(address: str, said: Sequence[Utterance], count: int) -> Callable[[], dict[str, list[float]]]:
    """Sends so many segments by each road, each when the one before is answered; answers with the seconds they took."""
    runner = asyncio.Runner()
    client = AsyncClient(address)
    given = requests(said)

    async def send() -> dict[str, list[float]]:
        async with client.stream() as stream:

            async def over_stream(one: Request) -> None:
                await (await stream.submit(*one))

            streamed = await _timed(over_stream)

        async def single(one: Request) -> None:
            await client.align(*one, sample_rate=16_000)

        return dict(zip(ROADS, (streamed, await _timed(single)), strict=True))

    async def _timed(road: Callable[[Request], Awaitable[None]]) -> list[float]:
        took = []
        for number in range(WARM + count):
            started = time.perf_counter()
            await road(given[number % len(given)])
            took.append(time.perf_counter() - started)
        return took[WARM:]

    return lambda: runner.run(send())


def _said(seconds: list[float]) -> str:
    return f"p50 {1000 * percentile(seconds, 50):.0f} ms, p95 {1000 * percentile(seconds, 95):.0f} ms"
