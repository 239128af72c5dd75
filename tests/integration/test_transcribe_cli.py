"""`align-client transcribe` as its user runs it, against a real server with OpenAI's tiny.en."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from align_client import AsyncClient, Client, Word
from align_client.chat.document import Document

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

pytestmark = pytest.mark.timeout(600)


def run(server: ServerProcess, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "align_client", "transcribe", *map(str, words)]
    environment = {**os.environ, "ALIGN_SERVER": server.address, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def test_a_recording_becomes_a_transcript(whisper: ServerProcess, examples: Path, tmp_path: Path) -> None:
    done = run(whisper, examples / "interview.mp3", "-o", tmp_path / "interview.cha")
    assert done.returncode == 0, done.stderr
    assert re.search(r"interview\.cha: \d+ words in eng, in \d+\.\d s of audio, by whisper:", done.stdout)
    document = Document.parse((tmp_path / "interview.cha").read_bytes())
    assert document.media is not None
    assert (document.media.name, document.media.kind) == ("interview", "audio")
    assert document.utterances
    ends = [0]
    for utterance in document.utterances:
        assert utterance.problem is None
        assert utterance.bullet is not None
        assert utterance.wor is not None
        times = [word.time for word in utterance.wor if word.time]
        assert len(times) == len(utterance.shown)
        assert utterance.bullet.start_ms <= times[0].start_ms
        assert times[-1].end_ms <= utterance.bullet.end_ms
        assert all(a.end_ms <= b.start_ms for a, b in itertools.pairwise(times))
        ends.append(utterance.bullet.end_ms)
    assert ends == sorted(ends)
    # What was written by hand in the example is what was heard, for the most part.
    expected = _words((examples / "interview.cha").read_text(encoding="utf-8"))
    heard = _words((tmp_path / "interview.cha").read_text(encoding="utf-8"))
    assert len(expected & heard) > len(expected) / 2, (expected, heard)


def _words(text: str) -> set[str]:
    main = " ".join(re.findall(r"^\*...:\t(.*)", text, re.MULTILINE)).lower()
    return set(re.findall(r"[a-z']+", re.sub("\x15[^\x15]*\x15", "", main)))


def test_an_existing_file_is_not_written_over(whisper: ServerProcess, examples: Path, tmp_path: Path) -> None:
    target = tmp_path / "talk.cha"
    target.write_text("a day of work", encoding="utf-8")
    done = run(whisper, examples / "play.flac", "-o", target)
    assert done.returncode == 2
    assert "talk.cha exists; choose another name, or write over it with --force" in done.stderr
    assert target.read_text(encoding="utf-8") == "a day of work"
    assert run(whisper, examples / "play.flac", "-o", target, "--force").returncode == 0
    assert target.read_text(encoding="utf-8").startswith("@UTF8\n@Begin\n")


def test_silence_has_no_words(whisper: ServerProcess, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000 * 40, np.int16), 16_000)
    done = run(whisper, tmp_path / "quiet.wav", "-o", tmp_path / "quiet.cha", "--language", "eng")
    assert done.returncode == 0, done.stderr
    assert "quiet.cha: no words, in 40.0 s" in done.stdout
    assert not Document.parse((tmp_path / "quiet.cha").read_bytes()).utterances


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "x.txt"), "x.txt is not named .cha"),
        (("-o", "x.cha", "--language", "en"), "'en' is no ISO 639-3 code"),
        (("-o", "x.cha", "--model", "sphinx-en-us"), "'sphinx-en-us' cannot find words, only align them"),
        (("-o", "x.cha", "--model", "none"), "the server has no model 'none'; it can serve sphinx-en-us, whisper:"),
    ],
)
def test_wrong_use(
    whisper: ServerProcess, examples: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = [word.replace("x.", f"{tmp_path}/x.") if word.startswith("x.") else word for word in words]
    done = run(whisper, examples / "play.flac", *given)
    assert done.returncode == 2, done.stderr
    assert message in re.sub(r"\s+", " ", done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_language_that_the_model_does_not_know(whisper: ServerProcess, examples: Path, tmp_path: Path) -> None:
    done = run(whisper, examples / "play.flac", "-o", tmp_path / "x.cha", "--language", "fra")
    assert done.returncode == 2
    said = re.sub(r"\s+", " ", done.stderr)
    assert "play.flac could be transcribed: the model does not know this language: 'fra' is none of" in said
    assert not (tmp_path / "x.cha").exists()


def test_not_a_recording(whisper: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_text("no sound", encoding="utf-8")
    done = run(whisper, tmp_path / "talk.wav", "-o", tmp_path / "x.cha")
    assert done.returncode == 1
    assert "talk.wav" in done.stderr
    assert not (tmp_path / "x.cha").exists()


async def test_a_stream_aligns_and_transcribes_side_by_side(whisper: ServerProcess, examples: Path) -> None:
    samples, rate = soundfile.read(examples / "play.flac", dtype="int16")
    pcm = samples[: 3 * rate] if rate == 16_000 else np.zeros(0, np.int16)
    async with AsyncClient(whisper.address) as client:
        model = next(row for row in await client.models() if row.transcribes)
        client.model = model.name
        async with client.stream() as stream:
            found = await stream.transcribe(pcm)
            aligned = await stream.submit(pcm, [Word("hello", "eng")])
            transcript = await found
            (word,) = await aligned
    assert word.text == "hello"
    assert transcript.problem == ""
    assert all(one.start is not None and one.end is not None and one.end <= 3.0 for one in transcript.words)


async def test_a_model_that_cannot_refuses_the_segment_alone(whisper: ServerProcess) -> None:
    pcm = np.random.default_rng(0).normal(0, 1000, 16_000).astype(np.int16)
    async with AsyncClient(whisper.address, model="sphinx-en-us") as client, client.stream() as stream:
        found = await stream.transcribe(pcm)
        aligned = await stream.submit(pcm, [Word("hello", "eng")])
        transcript = await found
        assert "segment.transcribe: model 'sphinx-en-us' cannot find words" in transcript.problem
        assert (await aligned)[0].text == "hello"


def test_models_say_which_of_them_transcribe(whisper: ServerProcess) -> None:
    with Client(whisper.address) as client:
        assert {row.name.partition(":")[0]: row.transcribes for row in client.models()} == {
            "sphinx-en-us": False,
            "whisper": True,
        }


def test_from_python(whisper: ServerProcess, examples: Path) -> None:
    with Client(whisper.address) as client:
        found = client.transcribe(examples / "interview.mp3", "eng")
    assert found.language == "eng"
    assert found.problem == ""
    assert found.words[0].text.casefold() == "can"
    assert all(
        a.start is not None and b.start is not None and a.start <= b.start for a, b in itertools.pairwise(found.words)
    )
