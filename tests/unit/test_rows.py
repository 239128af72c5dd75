"""Softmax, norm and GELU of rows in bfloat16 are those of double precision, rounded once; in float32 torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that everybody gives it

from align_server.engines.ctc.rows import normalise, softmax

EPSILON = 1e-5
HALF = 2.0**-8 * 1.05  # of the last place of a bfloat16, relative to its value, and what is computed in float32


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(columns, seed=2).bfloat16(), normal(columns, seed=3).bfloat16()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 1), (3, 16, 1), (5, 48, 33), (2, 656, 650), (7, 31, 31)])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_softmax_is_that_of_double_precision(
    dtype: torch.dtype, rows: int, columns: int, count: int, spread: float
) -> None:
    scores = (normal(2, rows, columns) * spread).to(dtype)
    expected = scores[..., :count].double().softmax(-1)
    found = softmax(scores.clone(), count)
    assert found.dtype is dtype
    assert found.shape == scores.shape
    assert not found[..., count:].any()
    torch.testing.assert_close(
        found[..., :count].double(), expected, rtol=HALF if dtype is torch.bfloat16 else 1e-5, atol=1e-37
    )


def test_softmax_of_what_is_far_apart() -> None:
    scores = torch.tensor([[3e38, 0, -3e38], [-3e38] * 3, [-math.inf, 2, -math.inf], [-5.0, -5, -5]]).bfloat16()
    third = torch.tensor(1 / 3).bfloat16().item()
    found = softmax(scores, 3).float()
    assert found.tolist() == [
        [1, pytest.approx(0, abs=1e-37), pytest.approx(0, abs=1e-37)],
        [third] * 3,
        [pytest.approx(0, abs=1e-37), 1, pytest.approx(0, abs=1e-37)],
        [third] * 3,
    ]


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 17, 39])
def test_softmax_hides_nothing_that_is_not_a_number(bad: float, where: int) -> None:
    scores = normal(3, 40).bfloat16()
    scores[1, where] = bad
    found = softmax(scores, 40)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (3, 16), (5, 513), (48, 1024)])
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_norm_is_that_of_double_precision(dtype: torch.dtype, gelu: bool, rows: int, columns: int, mean: float) -> None:
    x = (normal(rows, columns) * 2 + mean).to(dtype)
    weight, bias = (one.to(dtype) for one in affine(columns))
    expected = F.layer_norm(x.double(), (columns,), weight.double(), bias.double(), EPSILON)
    if gelu:
        expected = F.gelu(expected)
    found = normalise(x, weight, bias, EPSILON, gelu=gelu)
    assert found.dtype is dtype
    precision = HALF if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=precision, atol=1e-5)


def test_gelu_keeps_its_tails() -> None:
    wanted = torch.linspace(-6, 6, 4001).bfloat16()
    zero = torch.zeros_like(wanted)
    found = normalise(zero[None], zero, wanted, EPSILON, gelu=True)[0]  # the norm of nothing is the bias
    torch.testing.assert_close(found.double(), F.gelu(wanted.double()), rtol=0.01, atol=1e-9)


def test_norm_hides_nothing_that_is_not_a_number() -> None:
    x = normal(3, 40).bfloat16()
    x[1, 7] = math.nan
    for gelu in (False, True):
        found = normalise(x, *affine(40), EPSILON, gelu=gelu)
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


def test_what_is_given_stays() -> None:
    x = normal(3, 40).bfloat16()
    before = x.clone()
    normalise(x, *affine(40), EPSILON)
    assert torch.equal(x, before)
