"""What a model computes in, and which precision suits a device. Knows processors and torch's types, and no model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from align_server.engines.engine import EngineLoadError

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})


def chosen(precision: str, device: str) -> str:
    """fp32 or bf16; auto is bf16 on a CPU that multiplies it in hardware, else fp32. Raises EngineLoadError."""
    if precision == "auto":
        return "bf16" if device == "cpu" and multiplies_bf16() else "fp32"
    if precision not in PRECISIONS:
        raise EngineLoadError(f"there is no precision {precision!r}; there are auto, {' and '.join(PRECISIONS)}")
    return precision


def multiplies_bf16(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bf16 in hardware, as Linux says; elsewhere, that it does not."""
    try:
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())
