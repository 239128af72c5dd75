"""What numba compiles is compiled once, works without a cache, and leaves the GIL to others."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import caching

from align_server.engines.engine import probe
from align_server.engines.jit import kernel
from align_server.engines.sphinx import features, viterbi

if TYPE_CHECKING:
    import numpy.typing as npt
    import pytest

    from align_server.engines.sphinx.engine import SphinxEngine


def test_what_is_loaded_needs_no_more_compiling(engine: SphinxEngine) -> None:
    kernels: tuple[Any, ...] = (features.noise_gains, viterbi._search)
    before = [list(kernel.signatures) for kernel in kernels]
    engine.align([probe(300), probe(4000)])
    assert [list(kernel.signatures) for kernel in kernels] == before


def test_a_kernel_works_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise RuntimeError("cannot cache function 'half': no locator available for file 'x.py'")

    monkeypatch.setattr(caching, "FunctionCache", nowhere)
    monkeypatch.setattr("numba.core.dispatcher.FunctionCache", nowhere)

    @kernel
    def half(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return x * np.float32(0.5)

    assert half(np.ones(2, np.float32)).tolist() == [0.5, 0.5]


def test_a_kernel_rounds_every_operation_and_divides_as_numpy_does() -> None:
    @kernel
    def combined(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
        return a * b + c

    @kernel
    def ratio(a: np.float32, b: np.float32) -> np.float32:
        return a / b

    a = np.float32(1 + 2**-12)
    assert combined(a, a, np.float32(-1)) == a * a - np.float32(1)  # a fused multiply-add gives another last bit
    assert ratio(np.float32(1), np.float32(0)) == np.inf


def test_other_threads_run_while_a_kernel_does() -> None:
    @kernel
    def add_up(turns: int, value: float) -> float:
        total = 0.0
        for _ in range(turns):
            total += value
        return total

    add_up(1, 1.0)  # compiles
    working = threading.Thread(target=add_up, args=(400_000_000, 0.1))
    ticks = [time.monotonic()]
    working.start()
    while working.is_alive():
        time.sleep(0.001)
        ticks.append(time.monotonic())
    assert max(np.diff(ticks)) < (ticks[-1] - ticks[0]) / 2


def test_naming_the_model_loads_neither_torch_nor_numba() -> None:
    code = """
        import json, sys
        from align_server.engines import registry
        from align_server.engines.sphinx import model
        print(json.dumps([name for name in ("torch", "numba") if name in sys.modules]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
