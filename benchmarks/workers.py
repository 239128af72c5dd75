"""Throughput over the sizes of the server's thread pools, as a table: measured only where it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import processes
from clients import CLIENTS, make_counting_stream, seconds_of
from inputs import Utterance, utterances
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (1, 2, 4, 8)
VARIABLES = {"prepare": "ALIGN_PREPROCESS_WORKERS", "decode": "ALIGN_DECODE_WORKERS"}
TIMES = 4  # that each client sends its share of the recordings in a turn


def measure(scale: Scale) -> Iterator[Row]:
    """A row for each setting: one pool's size at a time, the other's as it is without being set."""
    said = utterances()
    times = scale.of(TIMES, 2 * TIMES)
    for step, variable in VARIABLES.items():
        for size in SIZES:
            wall, cpu = _speeds({variable: str(size)}, said, times, scale.of(2, 4))
            yield Row(
                f"audio seconds per wall second, per CPU second, {CLIENTS} clients, {size} threads that {step}",
                f"{spread(wall, 0)}, {spread(cpu, 0)}",
            )


def _speeds(settings: dict[str, str], said: list[Utterance], times: int, turns: int) -> tuple[list[float], list[float]]:
    """Audio seconds per wall second, and per CPU second of the server and its clients, of each turn."""
    wall, cpu = [], []
    audio_s = times * seconds_of(said)
    with (
        processes.server(settings=settings) as server,
        processes.Crew(
            make_counting_stream, [(server.address, said[n::CLIENTS], times) for n in range(CLIENTS)]
        ) as clients,
    ):
        clients.turn()
        for _ in range(turns):
            before = server.cpu_s()
            turn = clients.turn()
            wall.append(audio_s / turn.wall_s)
            cpu.append(audio_s / (server.cpu_s() - before + turn.cpu_s))
    return wall, cpu
