"""Every transcript of the corpora goes through the server, and nothing but bullets and %wor changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from align_client.chat.document import Document

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

WOR = re.compile(rb"^%wor:[^\r\n]*(?:\r?\n\t[^\r\n]*)*(?:\r?\n|\Z)", re.MULTILINE)
BULLET = re.compile(rb" ?\x15[^\x15]*\x15")
SPACE_AT_END = re.compile(rb"\s+\Z")


def skeleton(data: bytes) -> bytes:
    """The file less its %wor tiers and its time bullets."""
    return SPACE_AT_END.sub(b"", BULLET.sub(b"", WOR.sub(b"", data)))


def quiet_recording(folder: Path, document: Document) -> None:
    """Faint noise, so that words get times: as long as the transcript says, under the name that it gives."""
    assert document.media is not None
    ends = [utterance.bullet.end_ms for utterance in document.utterances if utterance.bullet]
    length = 8 * (max(ends, default=0) + 1000)
    name = document.media.name if document.media.name.endswith(".wav") else f"{document.media.name}.wav"
    noise = np.random.default_rng(1).normal(0, 60, 8000 * 20).astype(np.int16)
    with soundfile.SoundFile(folder / name, "w", 8000, 1) as file:
        for start in range(0, length, len(noise)):
            file.write(noise[: length - start])


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
        elif document.media is not None and "/" not in document.media.name:
            quiet_recording(folder, document)
        else:
            soundfile.write(folder / f"{source.stem}.wav", np.zeros(8000 * 60, np.int16), 8000)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "align_client",
            "align",
            str(inputs),
            "-o",
            str(out),
            "--report",
            str(tmp_path / "r.json"),
        ],
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
        before, after = (open(file[side], "rb").read() for side in ("source", "target"))  # noqa: PTH123, SIM115
        assert skeleton(after) == skeleton(before), file["source"]
        changed += after != before
        if file["words_aligned"] == 0:
            assert after == before
    assert changed >= sum(file["words_aligned"] > 0 for file in report["files"]) > 0
