"""align-client align --utr whisper: utterances without times among the words that OpenAI's tiny.en hears."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

pytestmark = pytest.mark.timeout(600)

BULLET = re.compile("\x15(\\d+)_(\\d+)\x15")
HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tPAR Participant\n@ID:\teng|x|PAR|||||Participant|||\n"
SENTENCES = 20


def run(server: ServerProcess, source: Path, expected: set[int]) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    """What the program said, the result and the report."""
    out, report = source.parent / "out", source.parent / "report.json"
    command = [sys.executable, "-m", "align_client", "align", str(source), "-o", str(out), "--server", server.address]
    done = subprocess.run(
        [*command, "--report", str(report), "--utr", "whisper"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in expected, done.stderr
    return done, out / source.name, report


def write(path: Path, said: list[str]) -> None:
    tiers = "".join(f"*PAR:\t{text} .\n" for text in said)
    path.write_text(f"{HEAD}@Media:\ttalk, audio\n{tiers}@End\n", encoding="utf-8")


@pytest.mark.corpus
def test_a_talk_gets_its_times_and_text_that_is_not_said_is_refused(
    whisper: ServerProcess, corpus_dir: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = json.loads(
        (corpus_dir / "speech" / "speechocean" / "manifest.json").read_text(encoding="utf-8")
    )[:SENTENCES]
    noise = np.random.default_rng(1)
    parts: list[np.ndarray] = []
    begins: list[float] = []
    for row in rows:
        samples = soundfile.read(corpus_dir / "speech" / "speechocean" / row["audio"], dtype="int16")[0]
        loud = np.flatnonzero(np.abs(samples.astype(int)) > 0.1 * np.abs(samples.astype(int)).max())
        parts.append(noise.normal(0, 8, int(noise.uniform(0.2, 5) * 16_000)).astype(np.int16))
        begins.append((sum(map(len, parts)) + int(loud[0])) / 16)  # where it becomes loud
        parts.append(samples)
    soundfile.write(tmp_path / "talk.wav", np.concatenate(parts), 16_000)
    wrong = 12
    said = [row["text"].lower() for row in rows]
    said.insert(wrong, "the committee postponed every decision about municipal waterworks until february")
    write(tmp_path / "talk.cha", said)
    _, result, report = run(whisper, tmp_path / "talk.cha", {1})
    lines = [line for line in result.read_text(encoding="utf-8").splitlines() if line.startswith("*")]
    found = [int(mark[1]) if (mark := BULLET.search(line)) else None for line in lines]
    assert found.pop(wrong) is None
    near = [start is not None and abs(start - begin) <= 500 for start, begin in zip(found, begins, strict=True)]
    assert np.mean(near) >= 0.7, list(zip(found, begins, strict=True))
    (row,) = json.loads(report.read_text(encoding="utf-8"))["files"]
    assert row["utterances_recovered"] == sum(start is not None for start in found)
    notes = {note["line"]: note["why"] for note in row["left_alone"]}
    assert re.search(r"its words were not heard around \d+\.\d s", notes[HEAD.count("\n") + 2 + wrong])


def test_a_server_without_a_model_that_hears_says_which_to_start(server: ServerProcess, tmp_path: Path) -> None:
    write(tmp_path / "talk.cha", ["hello my world"])
    done, result, _ = run(server, tmp_path / "talk.cha", {2})
    said = re.sub(r"\s+", " ", done.stderr)
    assert "none of which can find words; start it with --model whisper:... too" in said
    assert not result.exists()
