"""Prints the benchmark table in Markdown: `make bench`, or a part of it with --only; --quick takes less of everything.

Every figure is measured now; speed and memory are of two things side by side where a ratio is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rows import HEAD, Row

MEASUREMENTS = ("accuracy", "throughput", "corpus_run", "client_memory", "batching")


def main() -> None:
    """Print the machine, then each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, help="one of the measurements; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="less audio and fewer turns")
    arguments = parser.parse_args()
    print(_machine(), HEAD, sep="\n\n", flush=True)
    started = time.monotonic()
    for name in arguments.only or MEASUREMENTS:
        rows: list[Row] = importlib.import_module(name).measure(quick=arguments.quick)
        print(*rows, sep="\n", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s; load at the end {_load()}.")


def _machine() -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("chatalign", "torch", "grpcio", "numpy", "pocketsphinx")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB, {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, {versions}; load at the start {_load()}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in psutil.getloadavg())


if __name__ == "__main__":
    main()
