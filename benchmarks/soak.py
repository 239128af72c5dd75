"""Clients that break off at random for minutes: whether the server keeps anything of them.

The detector itself is tried on a server in which a leak was planted, and must find it.
"""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

import processes
from clients import requests
from inputs import utterances
from leaks import DESCRIPTORS, MEMORY, THREADS, Detector
from quitters import break_off
from rows import Row, Scale

if TYPE_CHECKING:
    from leaks import Verdict
    from quitters import Rounds

QUICK_S, USUAL_S, FULL_S = 15.0, 60.0, 600.0
PLANTED_S = 15.0
PLANTED = ("memory", "descriptor", "thread")
PLANTED_KINDS = (MEMORY, DESCRIPTORS, THREADS)
LEAKING = (str(Path(__file__).with_name("leaking_server.py")),)


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    seconds = scale.of(QUICK_S, USUAL_S, FULL_S)
    done, verdicts = watch(seconds)
    leaks = [one for one in verdicts if one.is_leaking]
    planted, found = watch(PLANTED_S, program=LEAKING, settings={"PLANTED": ",".join(PLANTED)})
    missed = [one.kind.name for one in found if one.kind in PLANTED_KINDS and not one.is_leaking]
    about = (
        f"{done.broken} calls and streams broken off in {seconds:.0f} s, {done.answered} that ended well beside them"
    )
    return [
        Row(
            f"what the server keeps ({about})",
            f"{'leaking' if leaks else 'flat'}: {'; '.join(map(str, verdicts))}",
            "flat",
            not leaks,
        ),
        Row(
            f"the same of a server that was made to leak, by {planted.broken} calls and streams in {PLANTED_S:.0f} s",
            f"{f'{missed} not found' if missed else 'found'}: {'; '.join(map(str, found))}",
            "found",
            not missed,
        ),
    ]


def watch(seconds: float, **server: Any) -> tuple[Rounds, list[Verdict]]:
    """Let clients of a server break off for so long, and say what it did meanwhile."""
    metrics = f"127.0.0.1:{processes.free_port()}"
    with processes.server("--metrics", metrics, **server) as running:
        detector = Detector(running.process, lambda: _allocated(metrics))
        done = asyncio.run(break_off(running.address, requests(utterances()), seconds, detector.look))
    return done, detector.verdicts()


def _allocated(metrics: str) -> tuple[float, float]:
    """What the server says of its own memory: bytes in use, and blocks of Python's."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    bytes_in_use, blocks = (families[f"align_{name}"].samples[0].value for name in ("allocated_bytes", "python_blocks"))
    return float(bytes_in_use), float(blocks)
