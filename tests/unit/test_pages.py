"""What a map of a file has in memory goes when it is released, and is as before when it is read again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from align_server.engines.pages import TOGETHER, few_at_a_time, passing, release

if TYPE_CHECKING:
    from pathlib import Path

MB = 2**20
SIZE = 16 * MB  # bytes of each tensor
NAMES = "abcdefghijkl"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc/self/maps")


def mapped() -> int:
    """Bytes of files that this process has in memory."""
    return int(psutil.Process().memory_info().shared)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Tensors of random values in a map of a file, of which nothing was read yet."""
    path = tmp_path / "model.pt"
    generator = torch.Generator().manual_seed(0)
    torch.save({name: torch.randn(SIZE // 4, generator=generator) for name in NAMES}, path)
    found: dict[str, torch.Tensor] = torch.load(path, mmap=True, weights_only=True)
    return found


def test_a_tensor_of_a_map_leaves_memory_and_is_as_before_when_it_is_read_again(
    weights: dict[str, torch.Tensor],
) -> None:
    before = mapped()
    total = weights["a"].sum()
    assert mapped() - before > 0.9 * SIZE
    release(weights["a"])
    assert mapped() - before < 0.25 * SIZE
    assert torch.equal(weights["a"].sum(), total)


def test_a_tensor_that_is_in_no_map_of_a_file_stays_as_it_is() -> None:
    for tensor in (torch.ones(SIZE // 4), torch.ones(3), torch.ones(0), torch.ones(64, 65536).T):
        release(tensor)
        assert (tensor == 1).all()


def test_few_at_a_time_are_in_memory(weights: dict[str, torch.Tensor]) -> None:
    expected = {name: float(weights[name].sum()) for name in NAMES}
    for name in NAMES:
        release(weights[name])
    give, before = few_at_a_time(weights.__getitem__), mapped()
    for i in range(0, len(NAMES), 2):
        pair = [(name, give(name)) for name in NAMES[i : i + 2]]  # a weight and its bias, before either is read
        assert all(float(tensor.sum()) == expected[name] for name, tensor in pair)
        assert mapped() - before < (TOGETHER + 1) * SIZE
    with pytest.raises(KeyError):
        give("z")


def test_a_model_lets_go_of_each_part_when_it_has_computed(tmp_path: Path) -> None:
    parts = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(6)))
    torch.save(parts.state_dict(), tmp_path / "model.pt")
    expected = parts(torch.ones(2048))
    parts.load_state_dict(torch.load(tmp_path / "model.pt", mmap=True, weights_only=True), assign=True)
    before, peak = mapped(), 0

    def look(*_: object) -> None:
        nonlocal peak
        peak = max(peak, mapped())

    for part in parts:
        part.register_forward_hook(look)
    torch.testing.assert_close(passing(parts)(torch.ones(2048)), expected, atol=0, rtol=0)
    assert peak - before < 2.5 * 2048 * 2048 * 4
    assert mapped() - before < 0.5 * 2048 * 2048 * 4
