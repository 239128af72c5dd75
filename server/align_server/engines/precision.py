"""What a model computes in, and which precision suits a device. Knows processors and torch's types, and no model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from align_server.engines.engine import EngineLoadError

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
INT8: Final = "int8"
CPU: Final = Path("/proc/cpuinfo")
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
_PACKERS: Final = torch.backends.quantized.supported_engines
# Without any, two products of 8 bits are added in 16, where they do not fit.
_INT8_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def chosen(precision: str, device: str) -> str:
    """fp32, bf16 or int8; auto is bf16 on a CPU or a CUDA GPU that multiplies it in hardware, else fp32.

    Raises EngineLoadError for a precision that there is not, or not there: int8 is for CPUs that multiply it in
    hardware.
    """
    if precision == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    if precision == INT8:
        _check_int8(device)
    elif precision not in PRECISIONS:
        raise EngineLoadError(
            f"there is no precision {precision!r}; there are auto, {', '.join(PRECISIONS)} and {INT8}"
        )
    return precision


def without_int8(precision: str, device: str) -> str:
    """The same for a model that has no int8, which takes auto instead. Raises EngineLoadError as `chosen` does."""
    wanted = chosen(precision, device)
    return finer(INT8) if wanted == INT8 else wanted


def floating(precision: str) -> torch.dtype:
    """The type of what a precision computes in floating point; with int8, on the CPU, that is the fastest there."""
    return PRECISIONS[chosen("auto", "cpu") if precision == INT8 else precision]


def finer(precision: str) -> str:
    """What to compute in where int8, on the CPU, or bf16 is too coarse for a model."""
    return chosen("auto", "cpu") if precision == INT8 else "fp32"


def multiplies_bf16(cpu: Path = CPU) -> bool:
    """Whether this machine's processor multiplies bf16 in hardware, as Linux says; elsewhere, that it does not."""
    return not _BF16_FLAGS.isdisjoint(_flags(cpu))


def multiplies_int8(cpu: Path = CPU) -> bool:
    """Whether it multiplies int8 in hardware, with sums of 32 bits; the same."""
    return not _INT8_FLAGS.isdisjoint(_flags(cpu))


def _has_bf16(device: str) -> bool:
    if device == "cpu":
        return multiplies_bf16()
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):  # of which alone torch tells; in emulation it is slower than fp32
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _check_int8(device: str) -> None:
    """Raises EngineLoadError where int8 cannot be computed, or not rightly."""
    cure = "leave --precision out, or use bf16 or fp32"
    if device != "cpu":
        raise EngineLoadError(f"int8 is computed on the CPU alone, not on {device}; start with --device cpu, or {cure}")
    if not multiplies_int8():
        raise EngineLoadError(
            f"int8 needs a processor that multiplies it in hardware, and {CPU} names none of "
            f"{', '.join(sorted(_INT8_FLAGS))} among the flags of this one; {cure}"
        )
    if "onednn" not in _PACKERS:
        raise EngineLoadError(f"int8 needs oneDNN, which the torch of this machine was built without; {cure}")


def _flags(cpu: Path) -> list[str]:
    """What a processor can, in Linux' words; nothing elsewhere."""
    try:
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return next((line for line in lines if line.startswith("flags")), "").split()
