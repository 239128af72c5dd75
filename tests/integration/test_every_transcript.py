"""Every transcript of the corpora goes through the server, and nothing but bullets and %wor changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from align_client.chat.document import Document

if TYPE_CHECKING:
    from support import ServerProcess

WOR = re.compile(rb"^%wor:[^\r\n]*(?:\r?\n\t[^\r\n]*)*(?:\r?\n|\Z)", re.MULTILINE)
BULLET = re.compile(rb" ?\x15[^\x15]*\x15")
LONGEST_NOISE = 16_000 * 180  # samples: aligning hours of noise would take the test minutes
SPACE_AT_END = re.compile(rb"\s+\Z")


def skeleton(data: bytes) -> bytes:
    """The file less its %wor tiers and its time bullets."""
    return SPACE_AT_END.sub(b"", BULLET.sub(b"", WOR.sub(b"", data)))


def quiet_recording(path: Path, document: Document) -> None:
    """As long as the transcript says: faint noise where that is short, so that words get times, or silence."""
    ends = [utterance.span.end_ms for utterance in document.utterances if utterance.span]
    length = 16 * (max(ends, default=0) + 1000)
    block = np.random.default_rng(1).normal(0, 60, 16_000 * 60).astype(np.int16)
    if length > LONGEST_NOISE:
        block[:] = 0
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        for start in range(0, length, len(block)):
            file.write(block[: length - start])


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", ["reference", "align-cases", "cabnc/plain", "cabnc/ca", "with-audio"])
def test_nothing_but_bullets_and_wor_tiers_changes(
    server: ServerProcess, corpus_dir: Path, tmp_path: Path, group: str
) -> None:
    sources = sorted((corpus_dir / "chat" / group).rglob("*.cha"))
    assert sources
    inputs, out = tmp_path / "in", tmp_path / "out"
    for source in sources:
        folder = inputs / source.relative_to(corpus_dir).with_suffix("")
        folder.mkdir(parents=True)
        (folder / source.name).write_bytes(source.read_bytes())
        document = Document.parse(source.read_bytes())
        recording = source.with_suffix(".mp3")
        if recording.exists():
            (folder / recording.name).write_bytes(recording.read_bytes())
        else:
            # One names a URL, which no recording is found under; it has no bullets, so that none is looked for.
            name = document.media.name.rpartition("/")[2] if document.media else source.stem
            quiet_recording(folder / (name if name.endswith(".wav") else f"{name}.flac"), document)
    arguments = (inputs, "-o", out, "--redo", "--report", tmp_path / "r.json")
    command = [sys.executable, "-m", "align_client", "align", *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, "ALIGN_SERVER": server.address},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [file["source"] for file in report["files"] if file["status"] == "failed"] == []
    assert len(report["files"]) == len(sources)
    changed = 0
    for file in report["files"]:
        before, after = (Path(file[side]).read_bytes() for side in ("source", "target"))
        assert skeleton(after) == skeleton(before), file["source"]
        changed += after != before
        if file["words_aligned"] == 0:
            assert after == before
    assert changed >= sum(file["words_aligned"] > 0 for file in report["files"]) > 0
