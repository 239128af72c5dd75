"""align-client on transcripts whose utterances have no times, with a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from align_client import Client
from corpora import manifest
from support import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

EXAMPLE = PROJECT / "examples"
BULLET = re.compile(" ?\x15(\\d+)_(\\d+)\x15")
HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tPAR Participant\n@ID:\teng|x|PAR|||||Participant|||\n"


def run(server: ServerProcess, source: Path, *flags: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, the result, and its row of the report."""
    out, report = source.parent / "out", source.parent / "report.json"
    command = [sys.executable, "-m", "align_client", "align", str(source), "-o", str(out), "--server", server.address]
    done = subprocess.run(
        [*command, "--report", str(report), *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in {0, 1}, done.stderr
    (row,) = json.loads(report.read_text(encoding="utf-8"))["files"]
    return done.returncode, (out / source.name).read_text(encoding="utf-8"), row


def starts(text: str) -> list[int | None]:
    """When each utterance begins, in ms."""
    lines = [line for line in text.splitlines() if line.startswith("*")]
    return [int(found[1]) if (found := BULLET.search(line)) else None for line in lines]


@pytest.fixture
def talk(corpus_dir: Path, tmp_path: Path) -> tuple[Path, list[str], list[float]]:
    """A transcript without bullets, its utterances, and where in the recording each one's sound file begins, in ms."""
    rows = json.loads((corpus_dir / "speech" / "speechocean" / "manifest.json").read_text(encoding="utf-8"))[:30]
    noise = np.random.default_rng(1)
    parts: list[np.ndarray] = []
    begins: list[float] = []
    for row in rows:
        parts.append(noise.normal(0, 8, int(noise.uniform(0.2, 5) * 16_000)).astype(np.int16))
        begins.append(sum(map(len, parts)) / 16)
        parts.append(soundfile.read(corpus_dir / "speech" / "speechocean" / row["audio"], dtype="int16")[0])
    soundfile.write(tmp_path / "talk.wav", np.concatenate(parts), 16_000)
    said = [row["text"].lower() for row in rows]
    write(tmp_path / "talk.cha", said)
    return tmp_path / "talk.cha", said, begins


def write(path: Path, said: list[str], bullets: dict[int, str] | None = None) -> None:
    marks = {index: f" \x15{mark}\x15" for index, mark in (bullets or {}).items()}
    tiers = "".join(f"*PAR:\t{text} .{marks.get(i, '')}\n" for i, text in enumerate(said))
    path.write_text(f"{HEAD}@Media:\ttalk, audio\n{tiers}@End\n", encoding="utf-8")


@pytest.mark.corpus
def test_a_transcript_without_times_gets_them_and_again_gives_the_same(
    server: ServerProcess, talk: tuple[Path, list[str], list[float]]
) -> None:
    source, said, begins = talk
    _, text, row = run(server, source)
    found = starts(text)
    assert sum(start is None for start in found) <= 1
    inside = [begin <= start <= begin + 2500 for start, begin in zip(found, begins, strict=True) if start is not None]
    assert np.mean(inside) >= 0.95
    assert row["utterances_recovered"] == len(inside)
    assert row["words_aligned"] > 0.9 * sum(len(one.split()) for one in said)
    assert BULLET.sub("", re.sub("%wor:.*\n", "", text)) == source.read_text(encoding="utf-8")

    again = source.with_name("again.cha")
    again.write_text(text.replace("\ttalk,", "\ttalk,"), encoding="utf-8")
    _, second, row = run(server, again)
    assert [start for start in starts(second) if start is not None] == [start for start in found if start is not None]


@pytest.mark.corpus
def test_utterances_between_bullets_are_looked_for_between_them(
    server: ServerProcess, talk: tuple[Path, list[str], list[float]]
) -> None:
    source, said, begins = talk
    bullets = {i: f"{begins[i]:.0f}_{begins[i] + 2000:.0f}" for i in (5, 20)}
    write(source, said, bullets)
    _, text, _ = run(server, source)
    found = starts(text)
    assert found[5] == round(begins[5])  # those that were there stay
    inside = [begin <= start <= begin + 2500 for start, begin in zip(found, begins, strict=True) if start is not None]
    assert np.mean(inside) >= 0.95


@pytest.mark.corpus
def test_text_that_is_not_said_is_refused_or_called_doubtful(
    server: ServerProcess, talk: tuple[Path, list[str], list[float]]
) -> None:
    source, said, _ = talk
    wrong = "the committee postponed every decision about municipal waterworks until february"
    write(source, [wrong if i == 12 else text for i, text in enumerate(said)])
    status, _, row = run(server, source)
    line = HEAD.count("\n") + 2 + 12
    notes = {note["line"]: note["why"] for key in ("left_alone", "warnings") for note in row[key]}
    assert "is not this" in notes[line] or "fit badly" in notes[line]
    assert status in {0, 1}


@pytest.mark.corpus
def test_without_recovery_they_are_left_alone(server: ServerProcess, talk: tuple[Path, list[str], list[float]]) -> None:
    source, said, _ = talk
    status, text, row = run(server, source, "--utr", "off")
    assert status == 1
    assert text == source.read_text(encoding="utf-8")
    assert len(row["left_alone"]) == len(said)
    assert row["utterances_recovered"] == 0


@pytest.fixture
def overlapping(server: ServerProcess, corpus_dir: Path, tmp_path: Path) -> tuple[Path, list[float]]:
    """A transcript of two speakers without bullets, and where its utterances are said, in ms.

    Every third begins while the one before goes on, and both are heard: by a fifth to three fifths of the shorter.
    """
    chance = np.random.default_rng(1)
    tiers: list[str] = []
    begins: list[float] = []
    sounds: list[tuple[int, np.ndarray]] = []
    over = latest = length = 0.0  # where the one before ends, and whichever ends last; how long the one before is
    with Client(server.address) as client:
        for number, row in enumerate(manifest(corpus_dir, "speechocean")[:60]):
            text = row["text"].lower()
            pcm, rate = soundfile.read(corpus_dir / "speech" / "speechocean" / row["audio"], dtype="int16")
            words = client.align(pcm, text.split(), language="eng", sample_rate=rate).words
            onset, end = words[0].start, words[-1].end
            assert onset is not None
            assert end is not None
            before, length = length, end - onset
            is_under = number % 3 == 2
            lap = chance.uniform(0.2, 0.6) * min(before, length)
            begin = over - lap if is_under else latest + chance.uniform(0.2, 3)
            tiers.append(f"*INV:\t+< {text} .\n" if is_under else f"*PAR:\t{text} .\n")
            begins.append(1000 * begin)
            sounds.append((max(0, round((begin - onset) * rate)), pcm))
            over = begin + length
            latest = max(latest, over)
    mixed = chance.normal(0, 8, max(at + len(pcm) for at, pcm in sounds))
    for at, pcm in sounds:
        mixed[at : at + len(pcm)] += pcm
    soundfile.write(tmp_path / "talk.wav", np.clip(mixed, -32768, 32767).astype(np.int16), 16_000)
    head = HEAD.replace("PAR Participant\n", "PAR Participant, INV Investigator\n")
    text = f"{head}@ID:\teng|x|INV|||||Investigator|||\n@Media:\ttalk, audio\n{''.join(tiers)}@End\n"
    (tmp_path / "talk.cha").write_text(text, encoding="utf-8")
    return tmp_path / "talk.cha", begins


@pytest.mark.corpus
def test_utterances_that_overlap_do_not_lead_others_astray(
    server: ServerProcess, overlapping: tuple[Path, list[float]]
) -> None:
    source, begins = overlapping
    _, text, _ = run(server, source)
    errors = [None if at is None else abs(at - begin) for at, begin in zip(starts(text), begins, strict=True)]
    groups = [errors[first::3] for first in range(3)]
    near = [np.mean([error is not None and error <= 500 for error in group]) for group in groups]
    assert min(near[:2]) >= 0.9  # those that overlap nothing, and those that go on while the next begins
    # What two people say at once is not always told apart.
    assert near[2] >= 0.6
    assert sum(error is None for error in groups[2]) <= 2


def test_a_recording_that_is_not_there_is_named(server: ServerProcess, tmp_path: Path) -> None:
    write(tmp_path / "talk.cha", ["hello my world"])
    status, text, row = run(server, tmp_path / "talk.cha")
    assert status == 1
    assert text == (tmp_path / "talk.cha").read_text(encoding="utf-8")
    assert "cannot be looked for" in row["left_alone"][0]["why"]
    assert "talk" in row["left_alone"][0]["why"]
