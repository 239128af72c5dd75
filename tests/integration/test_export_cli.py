"""`align-client export` as its user runs it: what `align` wrote, and the corpora, open in other programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import exported as read
from align_client.chat.document import Document
from align_client.export import SUFFIXES
from align_client.export.run import export
from align_client.files import Job
from exported import Said

if TYPE_CHECKING:
    from support import ServerProcess

Run = subprocess.CompletedProcess[str]
Client = Callable[..., Run]

CHAT = "@UTF8\n@Begin\n@Languages:\teng\n@Media:\ttalk, audio\n*CHI:\thello world . {}\n@End\n"
BULLET = "\x15100_900\x15\n%wor:\thello \x15100_300\x15 world \x15400_900\x15 ."


def run(*words: str | Path, server: str = "unix:/nowhere.sock") -> Run:
    """`align-client`, by default where there is no server."""
    command = [sys.executable, "-m", "align_client", *map(str, words)]
    environment = {**os.environ, "ALIGN_SERVER": server, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def aligned(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """The examples with word times."""
    folder = tmp_path_factory.mktemp("aligned")
    done = run("align", examples, "-o", folder, server=server.address)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A transcript with two timed words."""
    path = tmp_path / "talk.cha"
    path.write_text(CHAT.format(BULLET))
    return path


def words_in(path: Path, form: str) -> list[Said]:
    """The timed words of a result, by their time."""
    match form:
        case "textgrid":
            tiers = read.textgrid(path)
            words = [word for name in tiers if name.endswith(" - words") for word in tiers[name]]
        case "eaf":
            eaf = read.eaf(path)
            words = [word for name in eaf.parents for word in eaf.tiers[name]]
        case "csv":
            rows = [row for row in read.rows(path) if row["start"]]
            words = [Said(row["word"], *(round(float(row[side]) * 1000) for side in ("start", "end"))) for row in rows]
        case _:
            said = [word for utterance in read.document(path)["utterances"] for word in utterance["words"]]
            timed = [word for word in said if word["start"] is not None]
            words = [Said(word["word"], round(word["start"] * 1000), round(word["end"] * 1000)) for word in timed]
    return sorted(words, key=lambda word: word[1:])


def utterances_in(path: Path, form: str) -> int:
    """How many there are in a result."""
    match form:
        case "textgrid" | "eaf":
            tiers = read.textgrid(path) if form == "textgrid" else read.eaf(path).tiers
            return sum(len(tiers[name]) for name in tiers if name.endswith(" - utterances"))
        case "vtt":
            return len(read.vtt(path))
        case "srt":
            return len(read.subrip(path))
        case "csv":
            return len({row["utterance"] for row in read.rows(path)})
        case _:
            return len(read.document(path)["utterances"])


class TestWhatAlignWrote:
    @pytest.mark.parametrize("form", ["textgrid", "eaf", "csv", "json"])
    def test_words_and_times_are_those_of_wor(self, aligned: Path, tmp_path: Path, form: str, examples: Path) -> None:
        done = run("export", aligned, "--format", form, "-o", tmp_path, "--media-dir", examples)
        assert done.returncode == 0, done.stderr
        for name in ("interview", "play"):
            expected = read.wor_words(aligned / f"{name}.cha")
            assert len(expected) > 60
            found = words_in(tmp_path / f"{name}{SUFFIXES[form]}", form)
            assert found == sorted(expected, key=lambda word: word[1:])
            assert re.search(rf"{name}\.\w+: (\d+) of \1 utterances, {len(expected)} words", done.stdout)

    @pytest.mark.parametrize("form", ["vtt", "srt"])
    def test_cues_are_the_utterances(self, aligned: Path, tmp_path: Path, form: str) -> None:
        done = run("export", aligned / "play.cha", "--format", form, "-o", tmp_path / f"play.{form}")
        assert done.returncode == 0, done.stderr
        cues = (read.vtt if form == "vtt" else read.subrip)(tmp_path / f"play.{form}")
        utterances = Document.parse((aligned / "play.cha").read_bytes()).utterances
        assert [cue.speaker for cue in cues] == [u.speaker for u in utterances]
        expected = read.wor_words(aligned / "play.cha")
        with_words = [cue for cue, u in zip(cues, utterances, strict=True) if u.wor]
        assert [word for cue in with_words for word in cue.text.split()[:-1]] == [word.text for word in expected]
        assert [cue.text for cue in cues if cue not in with_words] == ["xxx ."]
        if form == "srt":
            assert [cue[2:4] for cue in cues] == [(u.bullet.start_ms, u.bullet.end_ms) for u in utterances if u.bullet]
        else:
            starts = {word.start_ms for word in expected}
            assert starts == {ms for cue in cues for ms in cue.stamps} | (starts & {cue.start_ms for cue in cues})

    def test_an_elan_file_is_linked_to_its_recording(self, aligned: Path, tmp_path: Path, examples: Path) -> None:
        done = run("export", aligned / "play.cha", "--format", "eaf", "-o", tmp_path, "--media-dir", examples)
        assert done.returncode == 0, done.stderr
        media = read.eaf(tmp_path / "play.eaf").media
        assert media["MEDIA_URL"] == f"file://{examples / 'play.flac'}"
        assert (tmp_path / media["RELATIVE_MEDIA_URL"]).resolve() == (examples / "play.flac").resolve()


class TestInputs:
    def test_trees_and_lists_keep_their_shape(self, talk: Path, tmp_path: Path) -> None:
        deep = tmp_path / "in" / "a"
        deep.mkdir(parents=True)
        (deep / "b.cha").write_bytes(talk.read_bytes())
        (tmp_path / "list.txt").write_text(f"{tmp_path / 'in'}\n{talk}\n")
        done = run("export", f"@{tmp_path / 'list.txt'}", "--format", "srt", "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "a" / "b.srt").read_bytes() == (tmp_path / "out" / "talk.srt").read_bytes()

    def test_an_utterance_without_a_time_exits_with_1_and_says_where(self, talk: Path, tmp_path: Path) -> None:
        talk.write_text(talk.read_text().replace("@End", "*MOT:\tno time .\n@End"))
        done = run("export", talk, "--format", "csv", "-o", tmp_path / "talk.csv")
        assert done.returncode == 1
        assert "talk.csv: 1 of 2 utterances, 2 words" in done.stdout
        assert re.search(r"talk\.cha:7:1: \*MOT: this turn has no time bullet", done.stderr)
        assert [row["word"] for row in read.rows(tmp_path / "talk.csv")] == ["hello", "world"]

    def test_a_transcript_without_times_exits_with_1_and_writes_nothing(self, talk: Path, tmp_path: Path) -> None:
        talk.write_text(CHAT.format(""))
        done = run("export", talk, "--format", "textgrid", "-o", tmp_path / "out")
        assert done.returncode == 1
        assert "none of its 1 utterances has a time" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_one_bad_file_leaves_the_others_done(self, talk: Path, tmp_path: Path) -> None:
        (tmp_path / "good").mkdir()
        talk.rename(tmp_path / "good" / "talk.cha")
        (tmp_path / "novel.cha").write_text("It was the best of times.\n")
        (tmp_path / "latin.cha").write_bytes(b"@UTF8\n@Begin\n*CHI:\tcaf\xe9 .\n@End\n")
        (tmp_path / "folder.cha").mkdir()
        done = run("export", tmp_path, "--format", "json", "-o", tmp_path / "out")
        assert done.returncode == 2
        assert "novel.cha: failed: not a CHAT file" in done.stderr
        assert "latin.cha: failed: not UTF-8" in done.stderr
        assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["talk.json"]
        assert run("export", tmp_path / "folder.cha", "--format", "json", "-o", tmp_path / "out").returncode == 2

    def test_results_that_exist_are_written_over_with_force_alone(self, talk: Path, tmp_path: Path) -> None:
        target = tmp_path / "talk.vtt"
        target.write_text("mine")
        done = run("export", talk, "--format", "vtt", "-o", tmp_path)
        assert done.returncode == 2
        assert "--force" in done.stderr
        assert target.read_text() == "mine"
        assert run("export", talk, "--format", "vtt", "-o", tmp_path, "--force").returncode == 0
        assert target.read_text().startswith("WEBVTT")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.cha", "talk.vtt"]

    def test_an_output_that_cannot_be_written_leaves_nothing(self, talk: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("a file")
        done = run("export", talk, "--format", "vtt", "-o", tmp_path / "file" / "out")
        assert done.returncode == 2
        assert "cannot write" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "talk.cha"]

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            (["nothing.cha", "--format", "vtt", "-o", "{out}"], "nothing.cha"),
            (["{talk}", "--format", "docx", "-o", "{out}"], "textgrid"),
            (["{talk}", "--format", "vtt"], "--out"),
            (["{talk}", "-o", "{out}"], "--format"),
            (["{talk}", "--format", "vtt", "-o", "{out}.srt"], "named .vtt"),
            (["{talk}", "--format", "vtt", "-o", "{talk}"], "is not a folder"),
            (["{talk}", "{talk}.too.cha", "--format", "vtt", "-o", "{out}.vtt"], "name a folder"),
            (["@{talk}.list", "--format", "vtt", "-o", "{out}"], "talk.cha.list"),
            (["{talk}", "--format", "eaf", "-o", "{out}", "--media-dir", "nowhere"], "nowhere"),
        ],
    )
    def test_wrong_usage_exits_with_2_and_says_what_to_do(
        self, talk: Path, tmp_path: Path, words: list[str], hint: str
    ) -> None:
        Path(f"{talk}.too.cha").write_bytes(talk.read_bytes())
        done = run("export", *(word.format(talk=talk, out=tmp_path / "out") for word in words))
        assert done.returncode == 2, done.stderr
        assert hint in done.stderr
        assert not list(tmp_path.glob("out*"))


@pytest.mark.corpus
class TestCorpora:
    @pytest.mark.parametrize("form", ["textgrid", "eaf", "csv", "json"])
    def test_the_words_of_every_wor_tier_are_there_at_their_times(
        self, corpus_dir: Path, tmp_path: Path, form: str
    ) -> None:
        sources = [path for path in sorted((corpus_dir / "chat").rglob("*.cha")) if b"\n%wor:" in path.read_bytes()]
        assert len(sources) >= 8
        for source in sources:
            target = tmp_path / f"{source.stem}{SUFFIXES[form]}"
            done = run("export", source, "--format", form, "-o", target)
            assert done.returncode in {0, 1}, done.stderr
            assert words_in(target, form) == sorted(read.wor_words(source), key=lambda word: word[1:]), source

    @pytest.mark.parametrize("form", SUFFIXES)
    def test_every_transcript_becomes_a_file_that_others_read(
        self, corpus_dir: Path, tmp_path: Path, form: str
    ) -> None:
        total = 0
        for i, source in enumerate(sorted((corpus_dir / "chat").rglob("*.cha"))):
            target = tmp_path / f"{i}{SUFFIXES[form]}"
            done = export(Job(source, target), form)
            timed = [u for u in Document.parse(source.read_bytes()).utterances if u.span and u.problem is None]
            assert done.error == ""
            assert done.utterances >= len(timed)
            assert target.exists() == (done.utterances > 0)
            if done.utterances:
                assert done.utterances + len(done.left_out) == done.total
                assert utterances_in(target, form) == done.utterances, source
            total += done.utterances
        assert total > 5_000
