"""Two hundred clients at once, half with a stream and half with single calls, on a server that has little memory."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import processes
from align_client import AlignError, AsyncClient
from align_client.sdk import async_client
from align_client.sdk.retry import Backoff
from clients import requests
from inputs import Utterance, utterances
from processes import MB
from rows import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from clients import Request

    Given = tuple[Utterance, Request]

PROCESSES, EACH = 8, 25
LIMIT_MB = 1024
REFUSALS = 5  # of one request, at most
QUICK_S, USUAL_S, FULL_S = 10.0, 60.0, 600.0
TIMEOUT_S = 3600.0
STALL_S = 30.0  # without an answer, after which no more are waited for


@dataclass(slots=True)
class Told:
    """What the clients of one process saw. `refusals` are of all requests, `most` of the one refused most often."""

    asked: int = 0
    answered: int = 0
    answered_s: float = 0.0
    refusals: int = 0
    most: int = 0
    why: str = ""


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = utterances()
    seconds = scale.of(QUICK_S, USUAL_S, FULL_S)
    clients = PROCESSES * EACH
    apart = max(1, len(said) // PROCESSES)
    with (
        processes.server("--memory-limit", f"{LIMIT_MB}M") as server,
        processes.Crew(
            make_crowd,
            [(server.address, [*said[n * apart :], *said[: n * apart]], seconds) for n in range(PROCESSES)],
        ) as crew,
        processes.watched(server.process) as most,
    ):
        turn = crew.turn()
        peak = most()
    told: list[Told] = turn.answers
    asked = sum(one.asked for one in told)
    lost = asked - sum(one.answered for one in told)
    worst = max(one.most for one in told)
    answered_s = sum(one.answered_s for one in told)
    about = f"{clients} clients with {seconds:g} s of audio each at once, half of them with single calls"
    return [
        Row(
            f"memory of the server, {about}",
            f"peak {peak / MB:.0f} MB",
            f"at most its limit, {LIMIT_MB} MB",
            peak <= LIMIT_MB * MB,
        ),
        Row(
            f"segments without an answer, of {asked}",
            f"{lost} ({next((one.why for one in told if one.why), '')})" if lost else "0",
            "0",
            not lost,
        ),
        Row(
            "the most often that one of these calls was refused",
            f"{worst} times; {sum(one.refusals for one in told)} refusals in all",
            f"at most {REFUSALS}",
            worst <= REFUSALS,
        ),
        Row("audio seconds per wall second, all of them together", f"{answered_s / turn.wall_s:.0f}"),
    ]


def make_crowd(address: str, said: Sequence[Utterance], seconds: float) -> Callable[[], Told]:
    """So many clients with a connection each, every other one with a stream; answers with what they saw."""
    runner = asyncio.Runner()
    told = Told()

    class Counting(Backoff):
        """Counts how often a request was refused."""

        def delay(self, error: AlignError) -> float:
            told.refusals += 1
            told.most = max(told.most, self.attempt + 1)
            return super().delay(error)

    vars(async_client)["Backoff"] = Counting  # the SDK keeps its tries to itself

    async def crowd() -> Told:
        given = list(zip(said, requests(said), strict=True))
        tasks = []
        for n, road in zip(range(EACH), itertools.cycle((_streamed, _single)), strict=False):
            mine = list(_as_long_as(seconds, [*given[n:], *given[:n]]))
            told.asked += len(mine)
            tasks.append(asyncio.create_task(road(AsyncClient(address, TIMEOUT_S), mine, told)))
        await _until_stalled(tasks, told)
        return told

    return lambda: runner.run(crowd())


async def _until_stalled(tasks: Sequence[asyncio.Task[None]], told: Told) -> None:
    """Wait for the clients, but not for ever where no more answers come."""
    answered = -1
    while answered < told.answered:
        answered = told.answered
        _, waiting = await asyncio.wait(tasks, timeout=STALL_S)
        if not waiting:
            return
    told.why = f"no answer for {STALL_S:g} s"
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _as_long_as(seconds: float, given: Sequence[Given]) -> Iterator[Given]:
    for one in itertools.cycle(given):
        if seconds <= 0:
            return
        seconds -= one[0].seconds
        yield one


async def _streamed(client: AsyncClient, given: Sequence[Given], told: Told) -> None:
    async with client, client.stream() as stream:
        futures = [await stream.submit(*request) for _, request in given]
        for (one, _), future in zip(given, futures, strict=True):
            await _count(one, future, told)


async def _single(client: AsyncClient, given: Sequence[Given], told: Told) -> None:
    async with client:
        for one, (pcm, words) in given:
            await _count(one, client.align(pcm, words, sample_rate=16_000), told)


async def _count(one: Utterance, answer: Awaitable[object], told: Told) -> None:
    try:
        await answer
    except AlignError as error:
        told.why = str(error)
    else:
        told.answered += 1
        told.answered_s += one.seconds
