"""Clients that break off at random for minutes: whether the server keeps anything of them.

The detector itself is tried on a server in which a leak was planted, and must find it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import processes
from clients import requests
from inputs import utterances
from leaks import Detector
from quitters import break_off
from rows import Row, Scale

if TYPE_CHECKING:
    from leaks import Verdict
    from quitters import Rounds

QUICK_S, USUAL_S, FULL_S = 15.0, 60.0, 600.0
PLANTED_S = 15.0
PLANTED = ("memory", "descriptor", "thread")
LEAKING = (str(Path(__file__).with_name("leaking_server.py")),)


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    seconds = scale.of(QUICK_S, USUAL_S, FULL_S)
    with processes.server() as server:
        done, verdicts = watch(server, seconds)
    leaks = [one for one in verdicts if one.is_leaking]
    with processes.server(program=LEAKING, settings={"PLANTED": ",".join(PLANTED)}) as server:
        planted, found = watch(server, PLANTED_S)
    missed = [one.kind.name for one in found if not one.is_leaking]
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


def watch(server: processes.ServerProcess, seconds: float) -> tuple[Rounds, list[Verdict]]:
    """Let clients break off for so long, and say what the server did meanwhile."""
    detector = Detector(server.process)
    done = asyncio.run(break_off(server.address, requests(utterances()), seconds, detector.look))
    return done, detector.verdicts()
