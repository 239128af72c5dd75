"""A server keeps nothing of clients that break off; and the detector that says so finds a leak that was planted."""

from __future__ import annotations

import sys

import pytest

from support import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))  # the detector is that of the benchmarks, and so are its clients

from leaks import DESCRIPTORS, MEMORY, RESIDENT
from soak import LEAKING, watch

pytestmark = pytest.mark.slow
SECONDS = 8.0  # of clients that break off


def test_clients_that_break_off_leave_nothing_behind() -> None:
    done, verdicts = watch(SECONDS)
    assert done.broken > 50
    assert not [str(verdict) for verdict in verdicts if verdict.is_leaking]


def test_the_detector_finds_memory_and_descriptors_that_are_kept() -> None:
    _, verdicts = watch(SECONDS, program=LEAKING, settings={"PLANTED": "memory,descriptor"})
    leaking = {verdict.kind for verdict in verdicts if verdict.is_leaking}
    assert leaking - {RESIDENT} == {MEMORY, DESCRIPTORS}, [str(verdict) for verdict in verdicts]
