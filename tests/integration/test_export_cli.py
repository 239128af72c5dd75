"""`align-client export` as its user runs it: what `align` wrote, and the corpora, open in other programs."""

from __future__ import annotations

import itertools
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
from align_client.export import PHONES, SUFFIXES
from align_client.export.run import export
from align_client.files import Job
from exported import Said

if TYPE_CHECKING:
    from support import ServerProcess

Run = subprocess.CompletedProcess[str]
Client = Callable[..., Run]

CHAT = "@UTF8\n@Begin\n@Languages:\teng\n@Media:\ttalk, audio\n*CHI:\thello world . {}\n@End\n"
BULLET = "\x15100_900\x15\n%wor:\thello \x15100_300\x15 world \x15400_900\x15 ."


ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"


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
            words = [word for name in eaf.parents if name.endswith(" - words") for word in eaf.tiers[name]]
        case "csv":
            rows = [row for row in read.rows(path) if row["start"]]
            words = [Said(row["word"], *(round(float(row[side]) * 1000) for side in ("start", "end"))) for row in rows]
        case _:
            said = [word for utterance in read.document(path)["utterances"] for word in utterance["words"]]
            timed = [word for word in said if word["start"] is not None]
            words = [Said(word["word"], round(word["start"] * 1000), round(word["end"] * 1000)) for word in timed]
    return sorted(words, key=lambda word: word[1:])


def phones_in(path: Path, form: str) -> list[Said]:
    """The phones of a result, by their time."""
    if form == "json":
        said = [word for utterance in read.document(path)["utterances"] for word in utterance["words"]]
        values = [phone for word in said for phone in word["phones"]]
        phones = [Said(one["phone"], round(one["start"] * 1000), round(one["end"] * 1000)) for one in values]
    else:
        tiers = read.textgrid(path) if form == "textgrid" else read.eaf(path).tiers
        phones = [phone for name in tiers if name.endswith(" - phones") for phone in tiers[name]]
    return sorted(phones, key=lambda phone: phone[1:])


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


class TestPhones:
    """With --phones a server is asked for those of each word."""

    def export(self, server: ServerProcess, source: Path, form: str, out: Path, examples: Path) -> Run:
        words = ("--phones", "--format", form, "-o", out, "--media-dir", examples)
        return run("export", source, *words, server=server.address)

    def hand_made(self, tmp_path: Path, main: str, wor: str) -> Path:
        """A transcript of the first turn of the example, "what do you want to play with"."""
        source = tmp_path / "mine.cha"
        lines = (
            "@UTF8",
            "@Begin",
            "@Languages:\teng",
            "@Media:\tplay, audio",
            f"*MOT:\t{main}",
            f"%wor:\t{wor}",
            "@End",
        )
        source.write_text("\n".join((*lines, "")).replace("•", "\x15"))
        return source

    @pytest.mark.parametrize("form", PHONES)
    def test_each_word_is_filled_by_its_phones(
        self, server: ServerProcess, aligned: Path, tmp_path: Path, form: str, examples: Path
    ) -> None:
        done = self.export(server, aligned, form, tmp_path, examples)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert re.search(r"play\.\w+: (\d+) of \1 utterances, (\d+) words, \2 with phones", done.stdout)
        for name in ("interview", "play"):
            words = words_in(tmp_path / f"{name}{SUFFIXES[form]}", form)
            assert words == sorted(read.wor_words(aligned / f"{name}.cha"), key=lambda word: word[1:])
            found = phones_in(tmp_path / f"{name}{SUFFIXES[form]}", form)
            assert {phone.text for phone in found} <= set(ARPABET.split())
            for word in words:
                own = [phone for phone in found if word.start_ms <= phone.start_ms < word.end_ms]
                assert (own[0].start_ms, own[-1].end_ms) == word[1:]
                assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(own))
                if word.text == "want":
                    assert [phone.text for phone in own] in (["W", "AA", "N", "T"], ["W", "AO", "N", "T"])

    def test_tiers_of_phones_stand_below_their_words(
        self, server: ServerProcess, aligned: Path, tmp_path: Path, examples: Path
    ) -> None:
        for form in ("textgrid", "eaf"):
            assert self.export(server, aligned / "play.cha", form, tmp_path, examples).returncode == 0
        grid, eaf = read.textgrid(tmp_path / "play.TextGrid"), read.eaf(tmp_path / "play.eaf")
        expected = [f"{who} - {what}" for who in ("MOT", "CHI") for what in ("utterances", "words", "phones")]
        assert list(grid) == list(eaf.tiers) == expected
        assert grid == eaf.tiers
        assert eaf.parents["CHI - phones"] == "CHI - words"

    def test_times_that_wor_has_stay_and_words_without_phones_are_told_of(
        self, server: ServerProcess, tmp_path: Path, examples: Path
    ) -> None:
        main = "what do you want to 漢字 with ? •420_2155•"
        wor = (
            "what •400_800• do you •867_1000• want •1000_1003• to •1100_1200• 漢字 •1200_1300• along •1300_1400• "
            "with •1400_1800• ?"
        )
        source = self.hand_made(tmp_path, main, wor)
        done = self.export(server, source, "json", tmp_path, examples)
        assert done.returncode == 1
        assert "1 of 1 utterances, 8 words, 4 with phones" in done.stdout
        told = re.findall(r"mine\.cha:6:\d+: (\w+): no phones: (.*)", done.stderr)
        assert [word for word, _ in told] == ["do", "want", "漢字", "along"]
        for (_, why), expected in zip(
            told, ("no time in %wor", "3 ms, too short for its 4", "cannot say this word", "no such word"), strict=True
        ):
            assert expected in why
        words = read.document(tmp_path / "mine.json")["utterances"][0]["words"]
        assert [bool(word["phones"]) for word in words] == [True, False, True, False, True, False, False, True]
        (what,) = words[:1]
        assert (what["phones"][0]["start"], what["phones"][-1]["end"]) == (0.4, 0.8)
        grid = self.export(server, source, "textgrid", tmp_path, examples)
        assert grid.stderr.count(": do: ") == 1

    def test_words_may_be_all_that_says_where_a_turn_is(
        self, server: ServerProcess, aligned: Path, tmp_path: Path, examples: Path
    ) -> None:
        lines = (aligned / "play.cha").read_text().splitlines()
        bare = [re.sub("\x15.*?\x15", "", line) if line.startswith("*") else line for line in lines]
        (tmp_path / "play.cha").write_text("\n".join(bare))
        done = self.export(server, tmp_path / "play.cha", "json", tmp_path, examples)
        assert re.search(r", (\d+) words, \1 with phones", done.stdout), done.stderr

    def test_without_a_recording_nothing_is_written(self, server: ServerProcess, talk: Path, tmp_path: Path) -> None:
        done = self.export(server, talk, "textgrid", tmp_path / "out", tmp_path)
        assert done.returncode == 2
        assert "phones take the recording" in done.stderr
        assert "no recording of this name" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_without_a_server_nothing_is_written(self, talk: Path, tmp_path: Path) -> None:
        done = run("export", talk, "--phones", "--format", "json", "-o", tmp_path / "out")
        assert done.returncode == 3
        assert "no server answers at unix:/nowhere.sock" in done.stderr
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            *((["--phones", "--format", form], "textgrid, eaf, json") for form in SUFFIXES if form not in PHONES),
            (["--format", "json", "--model", "sphinx-en-us"], "for --phones"),
            (["--phones", "--format", "json", "--model", "nope", "--server", "{server}"], "no model 'nope'"),
        ],
    )
    def test_what_cannot_be_asked_for_exits_with_2(
        self, server: ServerProcess, talk: Path, tmp_path: Path, words: list[str], hint: str
    ) -> None:
        done = run("export", talk, "-o", tmp_path / "out", *(word.format(server=server.address) for word in words))
        assert done.returncode == 2
        assert hint in done.stderr
        assert not (tmp_path / "out").exists()

    def test_other_exports_do_not_load_grpc(self, talk: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from align_client.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit as end: print(end.code, 'grpc' in sys.modules)"
        )
        words = ("export", talk, "--format", "json", "-o", tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "0 False"


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
