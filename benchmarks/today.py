"""align-client on a server with `mms-fa` against PyPI batchalign itself: the same files and the same random weights.

Needs batchalign 0.10.7 in an environment of its own, whose Python BATCHALIGN_PYTHON names. Both have loaded their model
before they are timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import processes
from align_server.engines.ctc import bundle
from clients import CLIENTS, seconds_of
from corpus_run import align
from inputs import conversation, utterances
from mms import SPEED, memory_row, random_weights
from rows import Row, Scale, faster, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from inputs import Conversation

VARIABLE = "BATCHALIGN_PYTHON"
PROGRAM = Path(__file__).with_name("batchalign_files.py")
WHAT = f"{bundle.NAME}, random weights, align-client against batchalign"
FILE_S = 60.0


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table; one that says why where batchalign is not there."""
    python = os.environ.get(VARIABLE)
    if not python:
        yield Row(WHAT, f"not measured: {VARIABLE} names no Python that has batchalign")
        return
    said = utterances()
    count = scale.of(CLIENTS // 2, CLIENTS)
    theirs: list[float] = []
    ours: list[float] = []
    peaks: list[int] = []
    with tempfile.TemporaryDirectory(prefix="ca-") as name, random_weights(), Batchalign(python) as tool:
        folder = Path(name)
        files = [
            conversation(folder / f"{number:02}.cha", said, FILE_S, first=number * len(said) // count)
            for number in range(count)
        ]
        some = files[:: len(files) // 2]
        with processes.server("--model", bundle.NAME) as server:
            tool.align(some[:1])
            for turn in range(scale.of(1, 3)):
                theirs.append(seconds_of(some) / tool.align(some))
                done = align(server.address, [[one] for one in files], folder / f"out-{turn}")
                ours.append(seconds_of(files) / max(one.wall_s for one in done))
                peaks += [one.peak for one in done]
            working = processes.peak_rss(server.process.pid)
        alone = processes.peak_rss(tool.process.pid)
    about = f"{count} files of {seconds_of(files) / count:.0f} s, {sum(one.utterances for one in files)} utterances"
    yield faster(
        f"{bundle.NAME}, random weights: align-client from start to end, {count} at once, over batchalign 0.10.7 in a "
        f"process that has loaded its model ({about})",
        [one / other for one, other in zip(ours, theirs, strict=True)],
        SPEED,
    )
    yield Row("audio seconds per wall second: align-client, batchalign", f"{spread(ours)}, {spread(theirs)}")
    yield memory_row("batchalign", working, max(peaks), alone)


class Batchalign:
    """A process of batchalign that has loaded its model. Use as `with`."""

    def __init__(self, python: str) -> None:
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with this
        self.process = subprocess.Popen(
            [python, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        if (answer := self._answer()) != "ready":
            raise RuntimeError(f"batchalign did not start: {answer or self._last_words()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self._said.close()

    def align(self, files: Sequence[Conversation]) -> float:
        """Seconds that it takes for all of them, one after the other as far as it wants."""
        assert self.process.stdin is not None
        print(json.dumps([str(one.path) for one in files]), file=self.process.stdin, flush=True)
        answer = self._answer()
        try:
            return float(answer)
        except ValueError:
            raise RuntimeError(f"batchalign failed: {answer or self._last_words()}") from None

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _last_words(self) -> str:
        self._said.seek(0)
        return "it ended: " + "".join(self._said.readlines()[-1:]).strip()
