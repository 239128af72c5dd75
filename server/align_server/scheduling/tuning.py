"""How large a batch should be, how fast the model is and what memory it takes: measured once, when it is warmed up.

The smallest batch that is about as fast per second of audio as any: small batches keep clients waiting less. An engine
that does not pad computes one segment after the other, so that of its batches only one of a single segment is timed.
Knows the engine's interface and nothing of queues. Everything here blocks and runs in a worker thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from align_server.scheduling.queue import MAX_ITEMS

if TYPE_CHECKING:
    from align_server.engines.engine import Engine
    from align_server.scheduling.learnt import Facts
    from align_server.scheduling.memory import Memory

PROBE_MS = 4_000  # about the mean length of an utterance
HANDOVER_S = 0.001  # what the event loop and the threads spend on a batch, whatever is in it
GAIN = 0.025  # per doubling of the batch: a smaller gain is not worth the wait
ENOUGH_S = 0.2  # of computing at one size: the least of many times tells most
MOST_MS = 240_000  # cost of the largest batch that is tried


def measure(engine: Engine, facts: Facts, lanes: int, memory: Memory) -> None:
    """Fill in what is not known yet. The engine is loaded."""
    if facts.batch_ms:
        return
    item = engine.prepare(engine.probe(PROBE_MS))
    cost = engine.cost(PROBE_MS)
    engine.decode(engine.compute([item])[0])  # the first time is not like the others
    best = float("inf")
    count, alone = 1, 0.0
    while count <= MAX_ITEMS and count * cost <= MOST_MS:
        if engine.pads or not alone:
            alone = _seconds(engine, [item] * count) / count
        each = alone + HANDOVER_S / count
        if each > best * (1 - GAIN):
            break
        best, facts.batch_ms = each, count * cost
        count *= 2
    steps = _timed_steps(engine)
    facts.rate = lanes * cost / 1000 / (best + steps)
    # A batch whose segments are computed one after the other takes no more than one of them: that one says what a long
    # segment takes.
    for items in {1, facts.batch_ms // cost}:
        memory.trim()
        before = memory.used()
        memory.reset_peak()
        engine.compute([item] * items)
        facts.alone_bytes_per_ms = max(facts.alone_bytes_per_ms, (memory.peak() - before) / (items * cost))
    facts.bytes_per_ms = facts.alone_bytes_per_ms


def _seconds(engine: Engine, batch: list[object]) -> float:
    """The least time that a batch took."""
    least, spent = float("inf"), 0.0
    while spent < ENOUGH_S:
        started = time.perf_counter()
        engine.compute(batch)
        took = time.perf_counter() - started
        least, spent = min(least, took), spent + took
    return least


def _timed_steps(engine: Engine) -> float:
    """Seconds that one probe takes to prepare and to decode."""
    started = time.perf_counter()
    item = engine.prepare(engine.probe(PROBE_MS))
    prepared = time.perf_counter() - started
    scored = engine.compute([item])[0]
    started = time.perf_counter()
    engine.decode(scored)
    return prepared + time.perf_counter() - started
