"""Clients of a server under measurement, and what they send. Each is a process of its own.

`make_stream` sends a list once a turn; a `Flood` keeps a server busy until it is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import time
from typing import TYPE_CHECKING, Any, Self

import psutil

from align_client import AlignError, AsyncClient, Word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from align_client.sdk.types import WordTiming
    from inputs import Conversation, Utterance

    Request = tuple[npt.NDArray[np.int16], list[Word]]

CLIENTS = 8
LANGUAGE = "eng"
WARM_S = 3.0  # of a flood, before it counts as one
START_S = 60.0


def requests(said: Sequence[Utterance]) -> list[Request]:
    """What a client sends for each utterance."""
    return [(one.pcm, [Word(word, LANGUAGE) for word in one.words]) for one in said]


def seconds_of(said: Sequence[Utterance | Conversation]) -> float:
    """The audio of some utterances, or of whole files."""
    return sum(one.seconds for one in said)


def make_stream(
    address: str, said: Sequence[Utterance], times: int = 1, model: str = ""
) -> Callable[[], list[tuple[WordTiming, ...]]]:
    """A client that sends everything, as often as that, over one stream; its turn answers with all times, in order."""
    runner = asyncio.Runner()
    client = AsyncClient(address, model=model)
    given = requests(said)

    async def send() -> list[tuple[WordTiming, ...]]:
        async with client.stream() as stream:
            futures = [await stream.submit(pcm, words) for _ in range(times) for pcm, words in given]
            return list(await asyncio.gather(*futures))

    def work() -> list[tuple[WordTiming, ...]]:
        results = runner.run(send())
        assert all(word.start is not None for result in results for word in result)
        return results

    return work


def make_counting_stream(address: str, said: Sequence[Utterance], times: int = 1, model: str = "") -> Callable[[], int]:
    """The same, for a client whose turn answers with the number of results alone."""
    work = make_stream(address, said, times, model)
    return lambda: len(work())


class Flood:
    """Client processes that each send over one stream without end. Use as `with`: they are at work when it begins."""

    def __init__(self, address: str, said: Sequence[Utterance], clients: int = CLIENTS, model: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._answered = [context.Value("d", 0.0) for _ in range(clients)]
        starts = [len(said) * number // clients for number in range(clients)]
        self._processes = [
            context.Process(
                target=_flood, args=(address, model, [*said[start:], *said[:start]], answered, self._stop), daemon=True
            )
            for answered, start in zip(self._answered, starts, strict=True)
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        deadline = time.monotonic() + START_S
        while not all(answered.value for answered in self._answered):
            self._check()
            assert time.monotonic() < deadline, "the clients got no answer"
            time.sleep(0.05)
        time.sleep(WARM_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for process in self._processes:
            process.join(timeout=30)

    def audio_s(self) -> float:
        """Audio that was answered so far, all clients together."""
        self._check()
        return float(sum(answered.value for answered in self._answered))

    def cpu_s(self) -> float:
        """CPU time of all clients so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self._processes]
        return float(sum(one.user + one.system for one in times))

    def _check(self) -> None:
        if dead := [process.exitcode for process in self._processes if not process.is_alive()]:
            raise RuntimeError(f"a flooding client ended with {dead[0]}")


def _flood(address: str, model: str, said: Sequence[Utterance], answered: Any, stop: Any) -> None:
    asyncio.run(_send_for_ever(address, model, said, answered, stop))


async def _send_for_ever(address: str, model: str, said: Sequence[Utterance], answered: Any, stop: Any) -> None:
    def count(seconds: float, future: asyncio.Future[tuple[WordTiming, ...]]) -> None:
        if not future.cancelled() and future.exception() is None:
            answered.value += seconds

    async with AsyncClient(address, model=model) as client:
        stream = client.stream()
        with contextlib.suppress(_Over):
            async with stream:
                for one, (pcm, words) in itertools.cycle(list(zip(said, requests(said), strict=True))):
                    future = await stream.submit(pcm, words)
                    future.add_done_callback(functools.partial(count, one.seconds))
                    if stop.is_set():
                        raise _Over


class _Over(Exception):  # noqa: N818  no fault: it breaks the stream off, so that nothing more is computed for it
    """The flood is to stop."""


async def is_at_rest(client: AsyncClient) -> bool:
    """Whether a server has nothing queued, nothing computing, and no stream open."""
    try:
        info = await client.info()
    except AlignError:
        return False
    return not (info.queued_s or info.computing_s or info.clients)
