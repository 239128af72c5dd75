"""A server that keeps its results: what was computed once is not computed again, and comes out the same."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_client import AsyncClient, Client, Word
from support import launch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from align_client.sdk.types import WordTiming
    from support import ServerProcess

RATE = 16_000
WORDS = [Word("hello", "eng"), Word("my", "eng"), Word("world", "eng")]


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 2000, 2 * RATE).astype(np.int16)


def start(room: Path) -> ServerProcess:
    config = room / "server.toml"
    config.write_text(f'cache_dir = "{room / "results"}"\n', encoding="utf-8")
    return launch(room / "align.sock", "--cache", "16M", "--config", str(config))


@pytest.fixture
def keeping(room: Path) -> Iterator[ServerProcess]:
    running = start(room)
    yield running
    running.stop()


async def send(address: str, count: int, words: list[Word] = WORDS) -> list[tuple[WordTiming, ...]]:
    async with AsyncClient(address) as client, client.stream() as stream:
        futures = [await stream.submit(noise(number), words) for number in range(count)]
        return list(await asyncio.gather(*futures))


async def test_the_second_time_nothing_is_computed(room: Path, keeping: ServerProcess) -> None:
    first = await send(keeping.address, 20)
    with Client(keeping.address) as client:
        before = client.info()
        assert (before.segments_done, before.cached) == (20, 0)
        assert await send(keeping.address, 20) == first
        one = client.align(noise(3), WORDS, sample_rate=RATE)
        assert one.cached
        assert one.words == first[3]
        after = client.info()
        assert (after.segments_done, after.cached) == (20, 21)
        assert after.cache_bytes > 0
        assert not client.align(noise(3), WORDS[:2], sample_rate=RATE).cached
        spoken = client.align(noise(3), WORDS, sample_rate=RATE, phones=True)
        assert not spoken.cached
        assert all(word.phones for word in spoken.words)
    keeping.stop()
    again = start(room)
    try:
        assert await send(again.address, 20) == first
        with Client(again.address) as client:
            once_more = client.align(noise(3), WORDS, sample_rate=RATE, phones=True)
            assert once_more.cached
            assert once_more.words == spoken.words
            assert client.info().segments_done == 0
    finally:
        again.stop()


async def test_a_server_that_is_killed_keeps_what_it_had_written(room: Path) -> None:
    running = start(room)
    first = await send(running.address, 10)
    await asyncio.sleep(2.5)  # results are written once a second
    running.stop(signal.SIGKILL)
    again = start(room)
    try:
        assert (await send(again.address, 12))[:10] == first
        with Client(again.address) as client:
            info = client.info()
        assert (info.segments_done, info.cached) == (2, 10)
    finally:
        again.stop()


def test_without_a_cache_everything_is_computed(server: ServerProcess) -> None:
    with Client(server.address) as client:
        results = [client.align(noise(3), WORDS, sample_rate=RATE) for _ in range(2)]
        assert not any(result.cached for result in results)
        assert results[0].words == results[1].words
        assert client.info().cache_bytes == 0
