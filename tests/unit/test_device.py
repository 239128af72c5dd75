"""What devices there are, and that a batch gets to one and back; on the CPU without asking for any GPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from align_server.engines import registry
from align_server.engines.device import CudaMemory, fetch, found, lane, send, send_padded
from align_server.engines.engine import EngineLoadError
from gpus import NEEDS_GPU
from support import PROJECT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
TOY = PROJECT / "tests" / "toy" / "checkpoint"
GB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many GPUs as the list is long, with so many GB each, of which they use a tenth, and two tenths at the peak."""
    sizes: list[int] = []

    def size(name: str) -> int:
        return sizes[int(name.partition(":")[2] or 0)] * GB

    stand_ins = {
        "is_available": lambda: bool(sizes),
        "device_count": lambda: len(sizes),
        "get_device_properties": lambda name: SimpleNamespace(total_memory=size(name)),
        "memory_allocated": lambda name: size(name) // 10,
        "max_memory_allocated": lambda name: size(name) // 5,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return sizes


def test_cuda_is_every_gpu_and_a_number_one_of_them(gpus: list[int]) -> None:
    assert found("cpu") == ["cpu"]
    assert (found("cuda"), found("cuda:0")) == ([], [])
    gpus += [80]
    assert (found("cuda"), found("cuda:0"), found("cuda:1")) == (["cuda"], ["cuda:0"], [])
    gpus += [80, 80]
    assert found("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert (found("cuda:2"), found("cuda:3"), found("cuda:")) == (["cuda:2"], [], [])


def test_memory_of_several_gpus_is_that_of_so_many_of_the_smallest(gpus: list[int]) -> None:
    gpus += [80, 40]
    both, one = CudaMemory("cuda"), CudaMemory("cuda:0")
    assert (both.total(), both.used(), both.peak()) == (80 * GB, 12 * GB, 24 * GB)
    assert (one.total(), one.used(), one.peak()) == (80 * GB, 8 * GB, 16 * GB)


@NEEDS_GPU
def test_a_lane_of_a_gpu_brings_what_was_sent_and_takes_memory_that_is_counted() -> None:
    gpu = found("cuda")[0]
    memory = CudaMemory(gpu)
    memory.trim()
    before = memory.used()
    memory.reset_peak()
    rows = [torch.arange(float(length)) for length in (1000, 100_000)]
    with torch.inference_mode(), lane(gpu), lane(gpu):  # two at once have two streams
        sent = send_padded(rows, gpu)
        back = fetch(sent * 2)
        assert back.is_pinned()
        assert memory.used() - before >= sent.nbytes
    assert torch.equal(back[1], 2 * rows[1])
    assert torch.equal(back[0, :1000], 2 * rows[0])
    assert not back[0, 1000:].any()
    del sent
    assert memory.used() == before
    assert before < memory.peak() < memory.total()


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("model", ["sphinx-en-us", "mms-fa", f"ctc:{TOY}"])
def test_a_gpu_that_is_not_there_is_named(model: str, device: str) -> None:
    with pytest.raises(EngineLoadError, match=f"no {device} device that torch can use; leave --device out, or use cpu"):
        registry.create(model, device)


@NO_GPU
@pytest.mark.parametrize("model", ["mms-fa", "ctc:facebook/wav2vec2-base-960h", "whisper:openai/whisper-tiny"])
def test_nothing_is_downloaded_for_a_gpu_that_is_not_there(model: str) -> None:
    with pytest.raises(EngineLoadError, match="no cuda:1 device that torch can use"):
        registry.fetch(model, device="cuda:1")


def test_on_the_cpu_what_is_sent_and_fetched_is_what_it_was() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    with lane("cpu"):
        assert fetch(send(tensor, "cpu")).data_ptr() == tensor.data_ptr()
    with pytest.raises(ValueError, match="mine"), lane("cpu"):
        raise ValueError("mine")


def test_a_batch_has_zeros_behind_its_shorter_rows() -> None:
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([6.0])]
    assert send_padded(rows, "cpu").tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert send_padded(rows[:1], "cpu").dtype is torch.float32


def test_the_cpu_is_there_without_asking_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(module, "is_available", lambda: pytest.fail("a GPU was asked for"))
    assert found("cpu") == ["cpu"]
    assert registry.create(f"ctc:{TOY}", "cpu").device == "cpu"


def test_on_the_cpu_cuda_is_never_begun() -> None:
    code = f"""
import torch
from align_server.engines import registry
def begun(): raise AssertionError("CUDA was begun")
torch.cuda._lazy_init = begun
for model in ("sphinx-en-us", {f"ctc:{TOY}"!r}):
    engine = registry.create(model, "cpu")
    engine.load()
    engine.warm_up()
    engine.unload()
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
