"""The server under many clients against the same engine called in one process, in the best batches there are.

Same audio, same number of threads that compute, turn by turn. Both sides are loaded and warm before anything is
measured. For the embedded model, and for a wav2vec2 of base size with random weights, which is as fast as a real one.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processes
from align_server.engines import registry
from align_server.engines.engine import Segment, Word
from clients import CLIENTS, LANGUAGE, make_counting_stream, seconds_of
from inputs import PROJECT, Utterance, grouped, utterances
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from align_server.engines.engine import Engine

SHARE = 0.95  # of the engine's own throughput
TURN_S = 20.0  # so that the first and the last segments do not count for much
SEGMENT_S = 15.0  # at most
SIZES = (1, 4, 16, 64)  # of batches in the process; the fastest is taken
TRIAL_S = 1.5  # of audio computed with each size, at least
RANDOM = "wav2vec2 base, random weights"


@dataclass(frozen=True, slots=True)
class Side:
    """One side's turn, in seconds."""

    audio_s: float
    wall_s: float
    engine_cpu_s: float
    clients_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Audio seconds per wall second."""
        return self.audio_s / self.wall_s


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    said = utterances()
    name = registry.DEFAULT_MODEL
    yield from compare(f"{name}, segments as align-client sends them", name, grouped(SEGMENT_S, said), scale)
    yield from compare(f"{name}, single utterances", name, said, scale)
    with checkpoint() as model:
        yield from compare(f"{RANDOM}, single utterances", model, said, scale)


@contextlib.contextmanager
def checkpoint() -> Iterator[str]:
    """The name of a model that is a wav2vec2 base with random weights, there as long as the context."""
    sys.path.insert(0, str(PROJECT / "tests"))
    import transformers  # noqa: PLC0415  slow to import, and not needed by those who import this module

    import checkpoints  # noqa: PLC0415  it is found only now

    reports: Any = transformers.utils.logging
    reports.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        yield f"{registry.CTC}{checkpoints.write_checkpoint(Path(folder), **checkpoints.BASE)}"


def compare(name: str, model: str, said: Sequence[Utterance], scale: Scale) -> list[Row]:
    """The rows of one model and one kind of segment."""
    lanes = processes.cores()
    with processes.Crew(make_trial, [(model, said, lanes)]) as trial:
        rate, size = trial.turn().answers[0]
    portion, times = _enough(said, rate * scale.of(TURN_S / 2, TURN_S))
    audio_s = times * seconds_of(portion)
    sent = [(portion[number::CLIENTS], times, model) for number in range(CLIENTS)]
    ours: list[Side] = []
    alone: list[Side] = []
    with (
        processes.server("--model", model) as server,
        processes.Crew(make_engine, [(model, portion, times, size, lanes)]) as engine,
        processes.Crew(make_counting_stream, [(server.address, *given) for given in sent]) as clients,
    ):
        clients.turn()
        engine.turn()
        for _ in range(scale.of(2, 3)):
            before = server.cpu_s()
            turn = clients.turn()
            ours.append(Side(audio_s, turn.wall_s, server.cpu_s() - before, turn.cpu_s))
            turn = engine.turn()
            alone.append(Side(audio_s, turn.wall_s, turn.cpu_s))
    ratios = [one.rate / other.rate for one, other in zip(ours, alone, strict=True)]
    about = f"{times * len(portion)} of {audio_s / times / len(portion):.1f} s on average, {audio_s:.0f} s a turn"
    return [
        Row(
            f"{name}: throughput of the server with {CLIENTS} clients over that of the engine in one process with "
            f"{lanes} threads and batches of {size} ({about})",
            spread(ratios, 3),
            f"at least {SHARE}",
            statistics.median(ratios) >= SHARE,
        ),
        Row(
            f"{name}, audio seconds per wall second: server, engine alone",
            f"{spread([one.rate for one in ours])}, {spread([one.rate for one in alone])}",
        ),
        Row(
            f"{name}, CPU ms per audio second: server, its clients, engine alone",
            f"{spread([1000 * one.engine_cpu_s / audio_s for one in ours], 2)}, "
            f"{spread([1000 * one.clients_cpu_s / audio_s for one in ours], 2)}, "
            f"{spread([1000 * one.engine_cpu_s / audio_s for one in alone], 2)}",
        ),
    ]


def make_trial(model: str, said: Sequence[Utterance], lanes: int) -> Callable[[], tuple[float, int]]:
    """Loads the engine; its turn answers with the audio seconds per second and the size of the fastest batches."""
    engine = _loaded(model)

    def work() -> tuple[float, int]:
        some = said[:: max(1, len(said) // 8)]
        first = lanes * seconds_of(some) / _seconds(engine, some, 1, 1)
        portion, times = _enough(said, first * TRIAL_S)
        segments = [*portion] * times
        rates = {size: seconds_of(segments) / _seconds(engine, segments, size, lanes) for size in SIZES}
        size = max(rates, key=lambda one: rates[one])
        return rates[size], size

    return work


def make_engine(model: str, said: Sequence[Utterance], times: int, size: int, lanes: int) -> Callable[[], None]:
    """Loads the engine; its turn aligns everything, as often as that, in batches of that size."""
    engine = _loaded(model)

    def work() -> None:
        _seconds(engine, [*said] * times, size, lanes)

    return work


def make_precise(model: str, said: Sequence[Utterance], lanes: int, precision: str) -> Callable[[], None]:
    """Loads the engine in that precision; its turn aligns everything, one by one on each lane."""
    engine = _loaded(model, precision)

    def work() -> None:
        _seconds(engine, said, 1, lanes)

    return work


def _loaded(model: str, precision: str = "auto") -> Engine:
    engine = registry.create(model, "cpu", precision)
    engine.load()
    if engine.precision != precision != "auto":
        raise RuntimeError(f"{model} does not agree in {precision}, and is computed in {engine.precision}")
    engine.warm_up()
    return engine


def _seconds(engine: Engine, said: Sequence[Utterance], size: int, threads: int) -> float:
    """How long the engine takes, in batches of like lengths, the longest first so that no thread ends late."""
    ordered = sorted(said, key=lambda one: -one.seconds)
    batches = [[segment(one) for one in ordered[start : start + size]] for start in range(0, len(ordered), size)]
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        answered = sum(map(len, pool.map(engine.align, batches)))
        took = time.perf_counter() - started
    assert answered == len(said)
    return took


def _enough(said: Sequence[Utterance], seconds: float) -> tuple[list[Utterance], int]:
    """Utterances of all kinds, and how often to take them, for about so much audio."""
    step = max(1, int(seconds_of(said) / seconds))
    portion = list(said[::step])
    return portion, max(1, round(seconds / seconds_of(portion)))


def segment(one: Utterance) -> Segment:
    """The engine's view of an utterance."""
    return Segment(one.id, one.pcm, tuple(Word(word, LANGUAGE) for word in one.words))
