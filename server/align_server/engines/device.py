"""Devices: which there are, how a batch gets to a GPU and back while another computes, and what memory GPUs have.

Knows torch and no model. For the CPU everything here does nothing, and asks CUDA and MPS for nothing.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_IDLE: Final[defaultdict[str, deque[torch.cuda.Stream]]] = defaultdict(deque)  # streams that no lane has, by GPU


def found(device: str) -> list[str]:
    """The devices that a name means on this machine, none where it has none of that name.

    `cuda` means every GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES restricts that), `cuda:1` the second.
    """
    if device == "cpu":
        return ["cpu"]
    if device == "mps":
        return ["mps"] if torch.backends.mps.is_available() else []
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if device == "cuda":
        return names if len(names) > 1 else names and ["cuda"]
    return [device] if device in names else []


@contextlib.contextmanager
def lane(device: str) -> Iterator[None]:
    """Compute on a stream that nobody else has meanwhile, so that lanes of one GPU overlap, and wait for its end.

    What is sent and fetched inside may be on its way until then, and is there afterwards. Waiting takes no processor.
    Raises what CUDA reports late. On other devices than CUDA nothing happens here.
    """
    if not _is_cuda(device):
        yield
        return
    with torch.cuda.device(device):
        try:
            stream = _IDLE[device].pop()  # the one used last: what the allocator keeps for it is used again
        except IndexError:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                yield
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record()
            done.synchronize()
        finally:
            _IDLE[device].append(stream)


def send(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor of the CPU on a device; to CUDA by way of pinned memory, without waiting for it."""
    if not _is_cuda(device):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # the allocator keeps pinned memory until it is read


def send_padded(rows: Sequence[torch.Tensor], device: str) -> torch.Tensor:
    """Tensors of one dimension as one batch on a device, shape [rows, longest], with zeros at their ends."""
    batch = torch.empty(len(rows), max(map(len, rows)), dtype=rows[0].dtype, pin_memory=_is_cuda(device))
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :] = 0
    return send(batch, device)


def fetch(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of any device on the CPU; of CUDA in pinned memory, with its values when the lane has ended."""
    if not tensor.is_cuda:
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class CudaMemory:
    """Memory of the GPUs that a device means, as torch's allocator has it, in bytes.

    Several count as one that is so many times the smallest: each has a replica of every model, and batches go to the
    one that has the fewest. What they use is summed up, since a batch is on one of them: to count the fullest for each
    would learn of a batch that it takes so many times what it does.
    """

    def __init__(self, device: str) -> None:
        self._gpus = found(device)

    def total(self) -> int:
        """What they have."""
        return len(self._gpus) * min(int(torch.cuda.get_device_properties(gpu).total_memory) for gpu in self._gpus)

    def used(self) -> int:
        """Allocated now."""
        return sum(map(torch.cuda.memory_allocated, self._gpus))

    def peak(self) -> int:
        """The most that was allocated since `reset_peak`, on each at its own time."""
        return sum(map(torch.cuda.max_memory_allocated, self._gpus))

    def reset_peak(self) -> None:
        """Begin a new peak."""
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def trim(self) -> None:
        """Give cached blocks back to the devices."""
        torch.cuda.empty_cache()


def _is_cuda(device: str) -> bool:
    return device.startswith("cuda")
