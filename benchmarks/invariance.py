"""Whether times and scores of a segment are the same to the last bit: alone, in any batch, and at any load."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import processes
from align_client import AsyncClient
from align_server.engines import registry
from clients import CLIENTS, Flood, make_stream, requests
from in_process import RANDOM, checkpoint, segment
from inputs import Utterance, utterances
from rows import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from align_client.sdk.types import WordTiming

BATCH = 16
SLOW = 16  # utterances for a model that is a hundred times as slow


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    said = utterances()
    yield from compare(registry.DEFAULT_MODEL, registry.DEFAULT_MODEL, said, scale.of(2, 4))
    with checkpoint() as model:
        yield from compare(RANDOM, model, said[:: len(said) // scale.of(SLOW // 2, SLOW)], 1)


def compare(name: str, model: str, said: Sequence[Utterance], times: int) -> list[Row]:
    """The rows of one model; batches are put together anew so many times."""
    batched = _batched(model, said, times)
    served = _served(model, said)
    about = f"{len(said)} utterances"
    return [
        Row(
            f"{name}: times and scores alone and in {times} random batches of {BATCH} ({about})",
            _said(batched),
            "identical",
            not batched,
        ),
        Row(
            f"{name}: the same alone on a server at rest, and beside {CLIENTS} clients that send all they can",
            _said(served),
            "identical",
            not served,
        ),
    ]


def _batched(model: str, said: Sequence[Utterance], times: int) -> int:
    """How many utterances get other results in a batch than alone, by the engine itself."""
    engine = registry.create(model, "cpu")
    engine.load()
    segments = [segment(one) for one in said]
    alone = [engine.align([one])[0] for one in segments]
    differ: set[int] = set()
    chance = random.Random(times)  # noqa: S311  no secret
    for _ in range(times):
        order = chance.sample(range(len(segments)), len(segments))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            results = engine.align([segments[place] for place in places])
            differ |= {place for place, result in zip(places, results, strict=True) if result != alone[place]}
    return len(differ)


def _served(model: str, said: Sequence[Utterance]) -> int:
    """How many get other results from a server at rest, one after the other, than from a busy one, all at once."""
    with processes.server("--model", model) as server:
        alone = asyncio.run(_one_by_one(server.address, said))
        with (
            Flood(server.address, said),
            processes.Crew(make_stream, [(server.address, said)] * 2) as crew,
        ):
            crowded = crew.turn().answers
    return sum(any(one[place] != alone[place] for one in crowded) for place in range(len(said)))


async def _one_by_one(address: str, said: Sequence[Utterance]) -> list[tuple[WordTiming, ...]]:
    async with AsyncClient(address) as client:
        return [(await client.align(*one, sample_rate=16_000)).words for one in requests(said)]


def _said(differing: int) -> str:
    return f"differ for {differing}" if differing else "identical"
