"""Whether a model says in bf16 or int8 what it says in fp32: asked with noise, whenever one is loaded.

Knows neither architectures nor files nor devices.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import torch

from align_server.engines.engine import SAMPLE_RATE
from align_server.engines.precision import finer

if TYPE_CHECKING:
    from collections.abc import Callable

AGREEING: Final = 0.1  # of a frame's probability that may be elsewhere in bf16 or int8; see `disagreement`

Model = TypeVar("Model", bound=torch.nn.Module)

log = structlog.get_logger()


def agreed(
    precision: str,
    make: Callable[[str], Model],
    hear: Callable[[Model, torch.Tensor], torch.Tensor],
    exact: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Model, str]:
    """The model that `make` gives for a precision, and that precision: a finer one where what was asked for is coarse.

    `hear` and `exact` give the logits of float32 samples, shape [samples], by a model and in fp32, on the CPU, shape
    [frames, vocabulary]. They are asked about a quarter of a second of noise, and not at all for fp32.
    Raises what they raise.
    """
    noise = torch.randn(SAMPLE_RATE // 4, generator=torch.Generator().manual_seed(0))
    expected: torch.Tensor | None = None
    while True:
        model = make(precision)
        if precision == "fp32":
            return model, precision
        with torch.inference_mode():
            if expected is None:
                expected = exact(noise)
            moved = disagreement(hear(model, noise), expected)
        if moved <= AGREEING:
            return model, precision
        because = f"in {precision} {moved:.0%} of the probability of a frame is elsewhere"
        precision = finer(precision)
        del model  # before the next takes memory
        gc.collect()  # modules refer to themselves
        log.warning("computing in a finer precision", precision=precision, because=because)


def disagreement(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """The share of a frame's probability that is elsewhere than in `exact`, on average; 1 where it is not a number.

    Both have the shape [frames, vocabulary]. Where the exact ones are not numbers either it is 0.
    """
    if not torch.isfinite(exact).all():
        return 0.0
    moved = (logits.softmax(-1) - exact.softmax(-1)).abs().sum(-1).mean() / 2
    return float(moved) if torch.isfinite(moved) else 1.0
