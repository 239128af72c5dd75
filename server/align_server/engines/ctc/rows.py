"""What is done to each row of a matrix in bfloat16 on the CPU: softmax, and norm with GELU. Torch takes twice as long.

Knows tensors; knows neither architectures nor names. Values are computed in float32 and rounded once, halves away
from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from align_server.engines.jit import as_bits, as_float, summing

if TYPE_CHECKING:
    import numpy.typing as npt

    Bits = npt.NDArray[np.int16]
    Floats = npt.NDArray[np.float32]

F: Final = np.float32
I: Final = np.int32  # noqa: E741
LOG2_E: Final = F(1.4426950408889634)
LEAST: Final = F(-126)  # the exponent of the smallest normal number
# 2 ** x for x from -0.5 to 0.5, to 7.5e-5 of its value; bfloat16 is within 3.9e-3.
E0, E1, E2, E3 = map(F, (0.999928073, 0.693260986, 0.242611126, 0.0551716696))
# The standard normal distribution's tail: M. Abramowitz and I. Stegun 1964, 26.2.17, to 7.5e-8
P, B1, B2, B3, B4, B5 = map(F, (0.2316419, 0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429))
DENSITY: Final = F(0.3989422804014327)  # 1 / sqrt(2 pi)


def softmax(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The softmax of each row's first `count` of `scores`, shape [..., columns], and then 0.

    It may take the place of the scores, which are contiguous.
    """
    if scores.dtype is torch.bfloat16:
        _softmax(_bits(scores).reshape(-1, scores.shape[-1]), count)
        return scores
    scores[..., count:] = -torch.inf
    return scores.softmax(-1)


def normalise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float, *, gelu: bool = False
) -> torch.Tensor:
    """Layer norm of each row of `x`, shape [rows, columns], contiguous; with `gelu` what that makes of it."""
    if x.dtype is torch.bfloat16:
        found = torch.empty_like(x)
        _normalise(_bits(x), (_bits(weight), _bits(bias)), F(epsilon), gelu, _bits(found))
        return found
    found = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)
    return torch.nn.functional.gelu(found) if gelu else found


def _bits(tensor: torch.Tensor) -> Bits:
    bits: Bits = tensor.view(torch.int16).numpy()
    return bits


@summing
def _wide(bits: Any) -> Any:
    return as_float(I(I(bits) << 16))


@summing
def _narrow(value: Any) -> Any:
    return np.int16(I(as_bits(value) + I(0x8000)) >> 16)


@summing
def _exp2(x: Any) -> Any:
    x = max(x, LEAST)
    whole = np.rint(x)
    x = x - whole
    return as_float(I(as_bits(((E3 * x + E2) * x + E1) * x + E0) + I(I(whole) << 23)))


@summing
def _gelu(x: Any) -> Any:
    size = abs(x)
    t = F(1) / (F(1) + P * size)
    tail = DENSITY * _exp2(x * x * (-LOG2_E / F(2))) * (t * (B1 + t * (B2 + t * (B3 + t * (B4 + t * B5)))))
    return (x if x > 0 else F(0)) - size * tail


# A loop for each step: together they are a quarter slower.


@summing
def _highest(row: Bits) -> Any:
    highest = np.int16(-0x8000)
    for j in range(len(row)):
        order = np.int16(row[j] ^ np.int16(np.int16(row[j] >> 15) & np.int16(0x7FFF)))  # as whole numbers have it
        highest = max(highest, order)
    return _wide(np.int16(highest ^ np.int16(np.int16(highest >> 15) & np.int16(0x7FFF))))


@summing
def _raised(row: Bits, top: Any, found: Floats) -> Any:
    total = F(0)
    for j in range(len(row)):
        power = _exp2((_wide(row[j]) - top) * LOG2_E)
        found[j] = power
        total += power
    return total


@summing
def _shared(row: Floats, share: Any, found: Bits) -> None:
    for j in range(len(row)):
        found[j] = _narrow(row[j] * share)


@summing
def _softmax(scores: Bits, count: int) -> None:
    powers = np.empty(count, np.float32)
    for i in range(len(scores)):
        row = scores[i, :count]
        total = _raised(row, _highest(row), powers)
        _shared(powers, F(1) / total, row)
        scores[i, count:] = 0


@summing
def _centred(row: Bits, found: Floats) -> Any:
    """The variance."""
    total = F(0)
    for j in range(len(row)):
        value = _wide(row[j])
        found[j] = value
        total += value
    mean = total / F(len(row))
    total = F(0)
    for j in range(len(row)):
        value = found[j] - mean
        found[j] = value
        total += value * value
    return total / F(len(row))


@summing
def _affine(row: Floats, width: Any, affine: tuple[Bits, Bits], found: Bits) -> None:
    weight, bias = affine
    for j in range(len(row)):
        found[j] = _narrow(row[j] * width * _wide(weight[j]) + _wide(bias[j]))


@summing
def _affine_gelu(row: Floats, width: Any, affine: tuple[Bits, Bits], found: Bits) -> None:
    weight, bias = affine
    for j in range(len(row)):
        found[j] = _narrow(_gelu(row[j] * width * _wide(weight[j]) + _wide(bias[j])))


@summing
def _normalise(x: Bits, affine: tuple[Bits, Bits], epsilon: Any, gelu: Any, found: Bits) -> None:
    row = np.empty(x.shape[1], np.float32)
    for i in range(len(x)):
        width = F(1) / np.sqrt(_centred(x[i], row) + epsilon)
        if gelu:
            _affine_gelu(row, width, affine, found[i])
        else:
            _affine(row, width, affine, found[i])
