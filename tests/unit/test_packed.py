"""Linear maps whose weights are laid out once give what torch gives with weights as they lie."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that everybody gives it

from align_server.engines.ctc.packed import Packed

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of values around 1


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[True, False], ids=["with oneDNN", "without"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("then", ["", "gelu", "plus"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("width", "out"), [(10, 16), (96, 48), (128, 1)])
def test_a_product_is_that_of_the_weights_in_single_precision(
    dtype: torch.dtype, then: str, biased: bool, width: int, out: int
) -> None:
    weight, bias = normal(out, width, seed=1) / width**0.5, normal(out, seed=2) if biased else None
    packed = Packed(weight, bias, dtype)
    for frames in (1, 7, 64):
        x = normal(frames, width, seed=frames)
        plus = normal(frames, out, seed=3).to(dtype)
        before = plus.clone()
        expected = F.linear(x, weight, bias)
        if then == "gelu":
            expected = F.gelu(expected)
        if then == "plus":
            expected += plus.float()
        found = packed(x.to(dtype), gelu=then == "gelu", plus=plus if then == "plus" else None)
        assert torch.equal(plus, before)
        assert found.dtype is dtype
        torch.testing.assert_close(found.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.usefixtures("onednn")
def test_windows_that_overlap_in_memory_are_multiplied_as_their_copies_are() -> None:
    frames, packed = normal(50, 8, seed=0), Packed(normal(4, 24, seed=1), None, torch.float32)
    windows = frames.as_strided((24, 24), (16, 1))
    torch.testing.assert_close(packed(windows), packed(windows.contiguous()), atol=0, rtol=0)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_becomes_of_the_weights_that_were_given_makes_no_difference(dtype: torch.dtype) -> None:
    weight, bias, x = normal(16, 32, seed=1).to(dtype), normal(16, seed=2).to(dtype), normal(5, 32, seed=3).to(dtype)
    packed = Packed(weight, bias, dtype)
    before = packed(x)
    weight.zero_()
    bias.zero_()
    torch.testing.assert_close(packed(x), before, atol=0, rtol=0)
