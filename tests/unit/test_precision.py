"""Which precision a model is computed in, and what int8 does to a linear map."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that everybody gives it

from align_server.config import PRECISIONS
from align_server.engines import precision
from align_server.engines.ctc.quantised import Quantised
from align_server.engines.engine import EngineLoadError
from align_server.engines.precision import chosen, finer, floating, multiplies_int8

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_INT8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
LENGTHS = (1, 7, 50, 333)  # frames


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Linux says of the processor, for the test to write."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_flags", lambda _: path.read_text(encoding="utf-8").split())
    return path


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_vnni", True),
        ("fpu avx2 avx_vnni", True),
        ("amx_tile amx_int8", True),
        ("fpu avx512f avx512_bf16", False),
    ],
)
def test_the_processor_says_whether_it_multiplies_int8(tmp_path: Path, flags: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : avx_vnni\n", encoding="utf-8")
    assert multiplies_int8(path) is expected
    assert not multiplies_int8(tmp_path / "nowhere")


def test_int8_is_refused_where_it_would_overflow_and_the_message_names_what_lacks(cpu: Path) -> None:
    cpu.write_text("fpu avx2", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"none of amx_int8, avx512_vnni, avx_vnni .*use bf16 or fp32"):
        chosen("int8", "cpu")


def test_int8_is_refused_without_onednn(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.write_text("avx_vnni", encoding="utf-8")
    monkeypatch.setattr(precision, "_PACKERS", ["none", "qnnpack"])
    with pytest.raises(EngineLoadError, match=r"oneDNN.*use bf16 or fp32"):
        chosen("int8", "cpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_int8_is_for_the_cpu_alone(device: str) -> None:
    with pytest.raises(EngineLoadError, match=f"not on {device}; start with --device cpu, or leave --precision out"):
        chosen("int8", device)


@pytest.mark.parametrize(("flags", "rest"), [("avx512_vnni", "fp32"), ("avx512_vnni avx512_bf16", "bf16")])
def test_what_is_not_in_int8_and_what_comes_after_it_is_what_auto_is(cpu: Path, flags: str, rest: str) -> None:
    cpu.write_text(flags, encoding="utf-8")
    assert chosen("int8", "cpu") == "int8"
    assert floating("int8") is {"fp32": torch.float32, "bf16": torch.bfloat16}[rest]
    assert (finer("int8"), finer("bf16")) == (rest, "fp32")


def test_the_settings_name_all_that_there_are_and_no_other(cpu: Path) -> None:
    cpu.write_text("avx512_vnni avx512_bf16", encoding="utf-8")
    assert {chosen(name, "cpu") for name in PRECISIONS} == {"fp32", "bf16", "int8"}
    with pytest.raises(EngineLoadError, match="no precision 'fp16'; there are auto, fp32, bf16 and int8"):
        chosen("fp16", "cpu")


@NEEDS_INT8
class TestQuantised:
    @pytest.mark.parametrize("frames", LENGTHS)
    def test_a_product_is_within_two_percent(self, frames: int) -> None:
        weight, bias, x = some(96, 64), some(96), some(frames, 64)
        exact = F.linear(x, weight, bias)
        found = Quantised(weight, bias)(x)
        assert found.dtype is torch.float32
        assert 0 < (found - exact).norm() < 0.02 * exact.norm()

    def test_a_row_of_small_weights_is_as_exact_as_one_of_large_weights(self) -> None:
        weight, x = some(2, 64), some(50, 64)
        weight[0] *= 1e-4
        exact = F.linear(x, weight)
        assert ((Quantised(weight, None)(x) - exact).norm(dim=0) < 0.02 * exact.norm(dim=0)).all()

    def test_the_largest_values_do_not_overflow(self) -> None:
        weight, x = torch.ones(16, 4096), torch.ones(3, 4096)
        x[0] = 0
        torch.testing.assert_close(Quantised(weight, None)(x), F.linear(x, weight), rtol=1e-3, atol=1e-3)

    def test_zeros_stay_zeros(self) -> None:
        weight = some(8, 16)
        weight[3] = 0
        mapped = Quantised(weight, torch.zeros(8))
        assert (mapped(some(5, 16))[:, 3] == 0).all()
        assert (mapped(torch.zeros(5, 16)) == 0).all()

    def test_what_it_is_given_has_its_type_back(self) -> None:
        assert Quantised(some(8, 16), some(8))(some(5, 16).bfloat16()).dtype is torch.bfloat16

    def test_weight_and_bias_are_its_own(self) -> None:
        weight, bias, x = some(32, 16), some(32), some(5, 16)
        mapped = Quantised(weight, bias)
        before = mapped(x)
        weight.zero_()
        bias.zero_()
        assert torch.equal(mapped(x), before)

    def test_weights_that_are_no_numbers_are_refused(self) -> None:
        for odd in (float("nan"), float("inf")):
            weight = some(8, 16)
            weight[2, 3] = odd
            with pytest.raises(EngineLoadError, match="not finite numbers"):
                Quantised(weight, None)

    def test_the_engine_of_torch_is_left_as_it_was(self) -> None:
        before = torch.backends.quantized.engine
        Quantised(some(8, 16), None)
        assert torch.backends.quantized.engine == before

    def test_it_has_the_same_bits_in_any_thread_and_after_any_other_length(self) -> None:
        mapped = Quantised(some(192, 64), some(192))
        inputs = [some(frames, 64) for frames in LENGTHS]
        alone = [mapped(x) for x in inputs]

        def turned(turn: int) -> bool:
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(turn)).tolist()
            return all(torch.equal(mapped(inputs[i]), alone[i]) for i in order)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(turned, range(50)))
