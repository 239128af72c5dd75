"""Transcripts without times, and where their utterances are found: the read sentences joined, with gaps between them.

Through align-client, over recordings of ten minutes and of an hour; with a tenth of the utterances missing from the
transcript, and with a tenth of them replaced by others. Where an utterance begins is what the same model says of it
alone. Beside the hour another client asks for one segment after the other.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import psutil
import soundfile

import processes
from align_client import Client
from align_client.media.stream import SAMPLE_RATE
from clients import LANGUAGE
from inputs import CORPORA, has_corpora, lasting, of_set
from rows import Row, Scale, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from inputs import Utterance

MINUTES = (10, 60)
GAPS_S = (0.2, 5.0)
HUM = 8.0  # of the gaps: their standard deviation, of 32768
SHARE = 0.1  # of utterances that are missing or replaced
MEDIAN_MS = 100
NEAR_MS = 500
BASE_SHARE, CHANGED_SHARE = 0.95, 0.9
CLIENT_MB = 80
SERVER_MB = 1000  # above its loaded state
SEGMENT_S = 5.0
TIMES = 2  # of another client's wait on the idle server, and one batch
IDLE_S = 3.0

HEAD = """@UTF8
@Begin
@Languages:\teng
@Participants:\tPAR Participant
@ID:\teng|recovery|PAR|||||Participant|||
@Media:\ttalk, audio
"""
_BULLET = re.compile("\x15(?P<start>\\d+)_\\d+\x15")


@dataclass(frozen=True, slots=True, eq=False)
class Talk:
    """Sentences, when each begins in ms, and the recording of them all."""

    said: list[Utterance]
    starts: list[int]
    pcm: npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of align-client found: a start in ms for each utterance or None, and lines of its report."""

    starts: list[int | None]
    flagged: set[int]
    seconds: float
    peak_mb: float


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table; none without the corpora."""
    if not has_corpora():
        return
    for minutes in MINUTES[: scale.of(1, 2)]:
        with (
            tempfile.TemporaryDirectory(prefix="ca-") as folder,
            processes.server() as server,
            Client(server.address) as client,
        ):
            talk = _talk(client, minutes)
            soundfile.write(Path(folder) / "talk.wav", talk.pcm, SAMPLE_RATE)
            yield from _rows(talk, minutes, Path(folder), server)


def _rows(talk: Talk, minutes: int, folder: Path, server: processes.ServerProcess) -> Iterator[Row]:
    name = f"{len(talk.said)} utterances of {minutes} minutes without bullets"
    changed = set(map(int, np.random.default_rng(minutes).permutation(len(talk.said))[: int(SHARE * len(talk.said))]))
    everything = range(len(talk.said))
    words = [one.words for one in talk.said]
    before = server.process.memory_info().rss
    with processes.watched(server.process) as most, _Other(server.address) as other:
        idle = other.waits(IDLE_S)
        other.clear()
        whole = _align(folder, "whole", words, server.address)
        beside = other.take()
    peak = most() - before
    with Client(server.address) as client:
        batch_s = processes.batch_s(client)
    yield _starts(f"{name}: starts", whole, talk, everything, BASE_SHARE)
    kept = [i for i in everything if i not in changed]
    less = _align(folder, "less", [words[i] for i in kept], server.address)
    yield _starts(f"{name}, of which a tenth is missing from the transcript: starts", less, talk, kept, CHANGED_SHARE)
    swapped = [words[(i * 7 + 31) % len(words)] if i in changed else words[i] for i in everything]
    other_text = _align(folder, "other", swapped, server.address)
    rest = Run([other_text.starts[i] for i in kept], set(), other_text.seconds, other_text.peak_mb)
    yield _starts(f"{name}, of which a tenth has other text: starts of the rest", rest, talk, kept, CHANGED_SHARE)
    wrong = len(changed & other_text.flagged)
    yield Row(
        f"{name}: other text that was left without a time or called doubtful, and of the rest",
        f"{wrong} of {len(changed)}, {len(other_text.flagged - changed)} of {len(kept)}",
    )
    yield Row(
        f"{name}: audio seconds per wall second, client and server together",
        f"{len(talk.pcm) / SAMPLE_RATE / whole.seconds:.0f}",
    )
    yield Row(
        f"{name}: memory of the client",
        f"{whole.peak_mb:.0f} MB",
        f"at most {CLIENT_MB} MB",
        whole.peak_mb <= CLIENT_MB,
    )
    yield Row(
        f"{name}: memory of the server above its loaded state",
        f"{peak / 2**20:.0f} MB",
        f"at most {SERVER_MB} MB",
        peak <= SERVER_MB * 2**20,
    )
    limit_s = TIMES * percentile(idle, 95) + batch_s
    yield Row(
        f"{name}: meanwhile another client's segment of {SEGMENT_S:g} s, p50 and p95; on the idle server",
        f"{1000 * percentile(beside, 50):.0f} and {1000 * percentile(beside, 95):.0f} ms; "
        f"{1000 * percentile(idle, 50):.0f} and {1000 * percentile(idle, 95):.0f} ms ({len(beside)} calls)",
        f"p95 at most {TIMES} times idle and a batch, which takes {1000 * batch_s:.0f} ms: {1000 * limit_s:.0f} ms",
        percentile(beside, 95) <= limit_s,
    )


def _starts(what: str, run: Run, talk: Talk, which: Sequence[int], least: float) -> Row:
    errors = [abs(start - talk.starts[i]) for start, i in zip(run.starts, which, strict=True) if start is not None]
    near = sum(error <= NEAR_MS for error in errors) / len(which)
    median = percentile(errors, 50)
    return Row(
        what,
        f"median error {median:.0f} ms, {100 * near:.1f} % within {NEAR_MS} ms, {len(which) - len(errors)} not placed",
        f"median at most {MEDIAN_MS} ms, at least {100 * least:.0f} % within {NEAR_MS} ms",
        median <= MEDIAN_MS and near >= least,
    )


def _talk(client: Client, minutes: int) -> Talk:
    """Sentences over and over until there are enough, each after a gap of its own."""
    noise = np.random.default_rng(minutes)
    sentences = list(of_set(CORPORA / "speech" / "speechocean"))
    firsts = []
    for one in sentences:
        found = client.align(one.pcm, list(one.words), language=LANGUAGE, sample_rate=SAMPLE_RATE)
        firsts.append(next(word.start for word in found.words if word.start is not None))
    said: list[Utterance] = []
    starts: list[int] = []
    parts: list[npt.NDArray[np.int16]] = []
    at = 0
    while at < minutes * 60 * SAMPLE_RATE:
        one = sentences[len(said) % len(sentences)]
        gap = noise.normal(0, HUM, int(noise.uniform(*GAPS_S) * SAMPLE_RATE)).astype(np.int16)
        starts.append(round(1000 * ((at + len(gap)) / SAMPLE_RATE + firsts[len(said) % len(sentences)])))
        parts += [gap, one.pcm]
        at += len(gap) + len(one.pcm)
        said.append(one)
    return Talk(said, starts, np.concatenate(parts))


def _align(folder: Path, name: str, words: Sequence[Sequence[str]], address: str) -> Run:
    """One run of align-client over a transcript of these words."""
    source, report = folder / f"{name}.cha", folder / f"{name}.json"
    tiers = "".join(f"*PAR:\t{' '.join(one).lower()} .\n" for one in words)
    source.write_text(f"{HEAD}{tiers}@End\n", encoding="utf-8")
    command = [sys.executable, "-m", "align_client", "align", str(source), "-o", str(folder / "out")]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--server", address, "--force", "--report", str(report)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with processes.watched(psutil.Process(process.pid)) as most:
        process.wait()
    seconds = time.perf_counter() - started
    lines = (folder / "out" / f"{name}.cha").read_text(encoding="utf-8").splitlines()
    tiers_out = [line for line in lines if line.startswith("*")]
    starts = [int(found["start"]) if (found := _BULLET.search(line)) else None for line in tiers_out]
    row = json.loads(report.read_text(encoding="utf-8"))["files"][0]
    first = HEAD.count("\n") + 1  # the line of the first utterance in the source
    noted = {note["line"] - first for key in ("left_alone", "warnings") for note in row[key]}
    return Run(starts, noted, seconds, most() / 2**20)


class _Other:
    """A client in a thread that asks for one segment after the other and takes down how long each takes."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)
        self._segment = lasting(SEGMENT_S, list(of_set(CORPORA / "speech" / "speechocean"))[:1])[0]
        self._took: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()

    def waits(self, seconds: float) -> list[float]:
        """What was taken down in the next so many seconds."""
        self.clear()
        time.sleep(seconds)
        return self.take()

    def clear(self) -> None:
        """Forget what was taken down."""
        self._took = []

    def take(self) -> list[float]:
        """What was taken down since."""
        took, self._took = self._took, []
        return took

    def _ask(self) -> None:
        one = self._segment
        while not self._over.wait(0.1):
            started = time.perf_counter()
            self._client.align(one.pcm, list(one.words), language=LANGUAGE, sample_rate=SAMPLE_RATE)
            self._took.append(time.perf_counter() - started)
