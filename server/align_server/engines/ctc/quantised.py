"""Linear maps in int8 on the CPU, by torch's own operator on oneDNN: weights are kept in a quarter of float32's memory.

Knows tensors; knows neither architectures nor names. Whether a processor can is said by `precision`.
"""

from __future__ import annotations

import threading
from typing import Final

import torch

from align_server.engines.ctc.packed import finished
from align_server.engines.engine import EngineLoadError

ENGINE: Final = "onednn"  # a layer of 4 M weights takes half as long as with x86, which torch chooses
LARGEST: Final = 127  # of a weight's 8 bits
_LOCK: Final = threading.Lock()  # the engine is chosen for the whole process


class Quantised:
    """A linear map of [out, in] weights, each row of which has a scale of its own, and a bias of [out] in float32.

    Both are copied. Raises EngineLoadError for weights that are not finite numbers: in int8 they would become such.

    Of what it is given the smallest and the largest value choose the scale: so a result depends on all of the
    frames, and on nothing else. Any number of threads may share one.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.float()
        low, high = torch.aminmax(weight, dim=1)  # unlike abs() it makes no copy
        peaks = torch.maximum(-low, high)
        if not torch.isfinite(peaks).all():
            raise EngineLoadError(
                "the weights have values that are not finite numbers; copy or download the model again"
            )
        scales = torch.where(peaks > 0, peaks / LARGEST, 1.0).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        own = None if bias is None else torch.empty(bias.shape).copy_(bias)  # oneDNN would look into the given one
        with _LOCK:
            before = torch.backends.quantized.engine
            torch.backends.quantized.engine = ENGINE
            try:
                self._packed = torch.ops.quantized.linear_prepack(quantised, own)
            finally:
                torch.backends.quantized.engine = before
        # oneDNN has made its own copy, and this one, which is kept for unpacking, would double the memory.
        quantised.untyped_storage().resize_(0)

    def __call__(self, x: torch.Tensor, *, gelu: bool = False, plus: torch.Tensor | None = None) -> torch.Tensor:
        """Shape [frames, out], in the type of `x`, whose shape is [frames, in]; see Packed."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic(x.float(), self._packed, reduce_range=False)
        return finished(product.to(x.dtype), gelu=gelu, plus=plus)
