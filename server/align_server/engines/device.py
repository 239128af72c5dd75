"""Memory of the device that an engine computes on, where that is not the machine's own."""

from __future__ import annotations

import torch


class CudaMemory:
    """Memory of one CUDA device as torch's allocator has it, in bytes."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def total(self) -> int:
        """What the device has."""
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    def used(self) -> int:
        """Allocated now."""
        return int(torch.cuda.memory_allocated(self._device))

    def peak(self) -> int:
        """The most that was allocated since `reset_peak`."""
        return int(torch.cuda.max_memory_allocated(self._device))

    def reset_peak(self) -> None:
        """Begin a new peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def trim(self) -> None:
        """Give cached blocks back to the device."""
        torch.cuda.empty_cache()
