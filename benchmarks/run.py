"""Prints the benchmark table in Markdown: `make bench`, or a part of it with --only.

--quick takes less of everything, --full more of what takes longest.
Every figure is measured now; speed and memory are of two things side by side where a ratio is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rows import HEAD, Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterable

MEASUREMENTS = (
    "accuracy",
    "throughput",
    "corpus_run",
    "rerun",
    "kills",
    "recovery",
    "client_memory",
    "in_process",
    "mms",
    "today",
    "checkpoint",
    "recognition",
    "attention",
    "padding",
    "health",
    "fairness",
    "crowd",
    "storm",
    "soak",
    "invariance",
)
ASKED_FOR = ("gpu", "workers")  # measured only where they are named


def main() -> None:
    """Print the machine, then each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS + ASKED_FOR, help="one of the measurements; may be repeated"
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", dest="scale", const=Scale.QUICK, help="less of everything")
    scale.add_argument(
        "--full", action="store_const", dest="scale", const=Scale.FULL, help="crowd and soak as long as they can be"
    )
    parser.set_defaults(scale=Scale.USUAL)
    arguments = parser.parse_args()
    print(_machine(), HEAD, sep="\n\n", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ca-") as state:
        os.environ["XDG_STATE_HOME"] = state  # what clients remember of these runs is not the user's
        for name in arguments.only or MEASUREMENTS:
            rows: Iterable[Row] = importlib.import_module(name).measure(arguments.scale)
            for row in rows:
                print(row, flush=True)
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
