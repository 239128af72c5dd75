"""Clients that break off: single calls cancelled at any moment, streams broken at any moment, and ones that never read.

They come in rounds, with an end when the server is at rest, so that what it keeps can be told from what it is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from align_client import AlignError, AsyncClient
from align_client.sdk import wire
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from clients import is_at_rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from clients import Request

SINGLES = 12  # in a round, of each sort
STREAMS = 4
DEAF = 2
SEGMENTS = 12  # of a stream
LONGEST_S = 0.4  # before a client breaks off
REST_S = 20.0  # within which a server must be at rest after a round
POLL_S = 0.01


@dataclass(slots=True)
class Rounds:
    """What the clients did."""

    rounds: int = 0
    answered: int = 0
    broken: int = 0


async def break_off(
    address: str, given: Sequence[Request], seconds: float, at_rest: Callable[[], object], seed: int = 0
) -> Rounds:
    """Rounds of clients that break off, for so long; `at_rest` is called after each. Raises TimeoutError."""
    chance = random.Random(seed)  # noqa: S311  no secret
    done = Rounds()
    until = asyncio.get_running_loop().time() + seconds
    async with AsyncClient(address) as client:
        while asyncio.get_running_loop().time() < until:
            attempts = [
                *(_single(client, chance.choice(given)) for _ in range(SINGLES)),
                *(_stream(address, chance.choices(given, k=SEGMENTS)) for _ in range(STREAMS)),
                *(_deaf(address, chance.choices(given, k=SEGMENTS)) for _ in range(DEAF)),
            ]
            ended = await asyncio.gather(*(_broken(one, chance.uniform(0, LONGEST_S)) for one in attempts))
            done.rounds += 1
            done.answered += sum(ended)
            done.broken += len(ended) - sum(ended)
            async with asyncio.timeout(REST_S):
                while not await is_at_rest(client):  # noqa: ASYNC110  another process has no event to wait for
                    await asyncio.sleep(POLL_S)
            at_rest()
    return done


async def _broken(attempt: Awaitable[None], after_s: float) -> bool:
    """Whether it was done before it was broken off."""
    task = asyncio.ensure_future(attempt)
    with contextlib.suppress(TimeoutError, AlignError):
        await asyncio.wait_for(task, after_s)
        return True
    return False


async def _single(client: AsyncClient, one: Request) -> None:
    await client.align(*one, sample_rate=16_000)


async def _stream(address: str, given: Sequence[Request]) -> None:
    async with AsyncClient(address) as client, client.stream() as stream:
        await asyncio.gather(*[await stream.submit(*one) for one in given])


async def _deaf(address: str, given: Sequence[Request]) -> None:
    """Sends what its first credit allows, reads no answer, and stays until it is broken off."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = AlignServiceStub(channel).AlignStream()
        await call.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client="deaf")))
        answer = await call.read()
        assert isinstance(answer, pb.AlignStreamResponse)
        credit_ms = answer.granted_ms
        for number, (pcm, words) in enumerate(given):
            credit_ms -= wire.audio_ms(pcm)
            if credit_ms >= 0:
                request = pb.AlignStreamRequest()
                wire.fill(request.segments.add(), str(number), pcm, words)
                await call.write(request)
        await asyncio.Event().wait()
