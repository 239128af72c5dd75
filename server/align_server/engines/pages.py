"""The memory that maps of files take: a loader's map of a file of weights fills it with every page that is read.

Knows tensors and Linux' maps; knows no format.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

MAPS: Final = Path("/proc/self/maps")
LEAST: Final = 2**16  # bytes: to look for the map of less takes longer than it is worth
TOGETHER: Final = 6  # tensors that are read before any is used: queries', keys' and values' weights and biases


def release(tensor: torch.Tensor) -> None:
    """Take the pages of a tensor that lies in a map of a file out of this process's memory.

    They come back from the file, or from the system's cache of it, when the tensor is read again; so nobody must have
    written to it. Nothing happens to small tensors, to those that lie elsewhere, and on other systems than Linux.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or size < LEAST:
        return
    # Whole pages: those at the ends have a part of others.
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and _is_of_a_file(begin, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def few_at_a_time(weights: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """The same tensors by their names; each is released when TOGETHER others were asked for after it."""
    given: deque[torch.Tensor] = deque()

    def give(name: str) -> torch.Tensor:
        given.append(weights(name))
        if len(given) > TOGETHER:
            release(given.popleft())
        return given[-1]

    return give


def passing(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, whose weights are released part by part when they have been computed with."""

    def forget(module: torch.nn.Module, *_: object) -> None:
        for weight in module.parameters(recurse=False):
            release(weight)

    for part in model.modules():
        part.register_forward_hook(forget)
    return model


def _is_of_a_file(begin: int, end: int) -> bool:
    """Whether these addresses lie in one map of a file."""
    try:
        lines = MAPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split()
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= begin and end <= last:
            return inode != "0"
    return False
