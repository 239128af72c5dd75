"""`mms-fa` with random weights on one GPU, segments of 15 s in bf16: how much of what it can it does, and how long.

The engine by itself, with the batches that a server would learn and as many lanes. Other GPUs have replicas that do the
same. Where there is no GPU, that is the one row.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from align_server.config import LANES_OF_A_GPU
from align_server.engines.ctc import bundle
from mms import SEGMENT_S, flops, random_weights
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_server.engines.engine import Engine

TURN_S = 5.0
GEMM = 8192  # rows and columns of the matrices
GEMMS = 100
WARM = 8  # products and batches before what is timed


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    import torch  # noqa: PLC0415  see mms.random_weights

    from align_server.engines import registry  # noqa: PLC0415  the same
    from align_server.engines.device import CudaMemory, found  # noqa: PLC0415  the same
    from align_server.scheduling.learnt import Facts  # noqa: PLC0415  beside its use
    from align_server.scheduling.tuning import measure as learn  # noqa: PLC0415  the same

    if not (gpus := found("cuda")):
        yield Row(f"{bundle.NAME}, random weights, on a GPU", "no GPU here")
        return
    with random_weights():
        engine = registry.create(bundle.NAME, gpus[0], "bf16")
        engine.load()
    facts = Facts()
    learn(engine, facts, LANES_OF_A_GPU, CudaMemory(gpus[0]))
    segment_ms = round(1000 * SEGMENT_S)
    count = max(1, facts.batch_ms // engine.cost(segment_ms))
    with torch.cuda.device(gpus[0]):
        turns = [_turn(engine, [engine.prepare(engine.probe(segment_ms))] * count) for _ in range(scale.of(1, 3, 5))]
        gemm = _gemm_rate()
    what = f"{bundle.NAME}, random weights, on {torch.cuda.get_device_name(gpus[0])} in {engine.precision}"
    lanes = f"{LANES_OF_A_GPU} lanes, batches of {count} segments of {SEGMENT_S:.0f} s"
    rates = [rate for rate, _ in turns]
    operations = flops(len(engine.probe(segment_ms).pcm))  # of a segment
    yield Row(
        f"{what}: share of the rate of bf16 matrix products of {GEMM} x {GEMM} x {GEMM} ({lanes})",
        f"{spread([100 * rate * operations / gemm for rate in rates], 0)} %",
    )
    yield Row(f"{what}: share of the time in which it has a batch", f"{spread([100 * busy for _, busy in turns], 0)} %")
    yield Row(f"{what}: audio seconds per wall second", spread([rate * SEGMENT_S for rate in rates], 0))
    yield Row(f"{what}: TFLOP/s of matrix products", f"{gemm / 1e12:.0f}")


def _turn(engine: Engine, batch: list[Any]) -> tuple[float, float]:
    """Segments a second, and the share of the time in which some batch was between its first layer and its last."""
    import torch  # noqa: PLC0415  see measure

    event: Any = torch.cuda.Event  # has no types
    model: Any = engine._model  # type: ignore[attr-defined]  # noqa: SLF001  where layers begin only it can tell
    mine = threading.local()
    spans: list[tuple[Any, Any]] = []

    def mark() -> Any:
        made = event(enable_timing=True)
        made.record()  # on the stream of this thread's lane
        return made

    def begin(*_: object) -> None:
        mine.begin = mark()

    def end(*_: object) -> None:
        spans.append((mine.begin, mark()))

    def work(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            engine.compute(batch)
            done += len(batch)
        return done

    for _ in range(WARM):
        engine.compute(batch)
    hooks = [model.feature_extractor.register_forward_pre_hook(begin), model.aux.register_forward_hook(end)]
    with ThreadPoolExecutor(LANES_OF_A_GPU) as lanes:
        zero, started = mark(), time.perf_counter()
        done = sum(lanes.map(work, [started + TURN_S] * LANES_OF_A_GPU))
        wall_s = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    torch.cuda.synchronize()
    times = sorted((zero.elapsed_time(first), zero.elapsed_time(last)) for first, last in spans)  # ms
    busy_ms, until_ms = 0.0, 0.0
    for first, last in times:
        busy_ms += max(0.0, last - max(first, until_ms))
        until_ms = max(until_ms, last)
    return done / wall_s, busy_ms / 1000 / wall_s


def _gemm_rate() -> float:
    """Operations a second of large matrix products in bf16, on the current GPU."""
    import torch  # noqa: PLC0415  see measure

    a, b = (torch.randn(GEMM, GEMM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(WARM):
        torch.mm(a, b)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(GEMMS):
        torch.mm(a, b)
    torch.cuda.synchronize()
    return 2.0 * GEMM**3 * GEMMS / (time.perf_counter() - started)
