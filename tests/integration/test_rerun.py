"""`align` run again: what is right is left as it is, what changed is done, and nothing is lost in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from align_client import Client
from support import PROJECT, launch

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

Align = Callable[..., dict[str, Any]]
FILES = ("interview", "play")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """The examples, three times over, in a folder that nobody changes."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        shutil.copytree(examples, folder / str(number), ignore=shutil.ignore_patterns("*.py", "*.md", "*.sh", "*.json"))
    return folder


@pytest.fixture
def talk(examples: Path, tmp_path: Path) -> Path:
    """A folder with one of the examples, which the test may change."""
    folder = tmp_path / "talk"
    folder.mkdir()
    for name in ("play.cha", "play.flac"):
        shutil.copy(examples / name, folder)
    return folder


def command(server: ServerProcess, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", "align_client", "align", *map(str, words), "--server", server.address]


@pytest.fixture
def align(server: ServerProcess, tmp_path: Path) -> Align:
    """Runs `align-client align` and gives the report, with the segments that the server computed for it."""

    def run(*words: str | Path, at: ServerProcess = server, status: int = 0) -> dict[str, Any]:
        report = tmp_path / "report.json"
        with Client(at.address) as asking:
            before = asking.info().segments_done
            done = subprocess.run(
                [*command(at, *words), "--report", str(report)],
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode == status, done.stderr
            values: dict[str, Any] = json.loads(report.read_text())
            schema = json.loads((PROJECT / "docs" / "report.schema.json").read_text())
            jsonschema.validate(values, schema, jsonschema.Draft202012Validator)
            return values | {"computed": asking.info().segments_done - before, "said": done.stderr}

    return run


def outputs(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.cha"))}


class TestUnchanged:
    def test_the_second_run_computes_nothing_and_says_the_same(
        self, align: Align, corpus: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        first = align(corpus, "-o", out)
        assert first["computed"] > 0
        assert first["totals"]["unchanged"] == 0
        written = outputs(out)
        times = {path: (out / path).stat().st_mtime_ns for path in written}
        half = out / next(iter(written)).with_name(".play.cha.align-01234567.tmp")
        half.write_bytes(b"of a client that was killed")
        second = align(corpus, "-o", out)
        assert not half.exists()
        assert second["computed"] == 0
        assert outputs(out) == written
        assert {path: (out / path).stat().st_mtime_ns for path in written} == times
        assert second["totals"]["unchanged"] == second["totals"]["files"] == 6
        assert second["totals"]["words_aligned"] == first["totals"]["words_aligned"] > 0
        assert second["totals"]["audio_s"] == 0
        assert [file | {"unchanged": False} for file in second["files"]] == first["files"]
        assert "unchanged" in second["said"]

    def test_in_place_too(self, align: Align, talk: Path) -> None:
        assert align(talk, "--in-place")["computed"] > 0
        written = outputs(talk)
        second = align(talk, "--in-place")
        assert second["files"][0]["unchanged"]
        assert second["computed"] == 0
        assert outputs(talk) == written

    @pytest.mark.parametrize(
        "what", ["source", "option", "recording", "moved", "output deleted", "output edited", "force"]
    )
    def test_what_changed_is_done_again(self, align: Align, talk: Path, tmp_path: Path, what: str) -> None:
        out = tmp_path / "out"
        source, target, recording = talk / "play.cha", out / "play.cha", talk / "play.flac"
        align(talk, "-o", out)
        written = target.read_bytes()
        options: list[str | Path] = []
        match what:
            case "source":
                source.write_bytes(source.read_bytes().replace(b"@End", b"@Comment:\tread again\n@End"))
            case "option":
                options = ["--redo"]
            case "recording":
                os.utime(recording, ns=(1, 1))
            case "moved":  # another recording would be taken now
                shutil.copy(recording, talk / "play.wav")
            case "output deleted":
                target.unlink()
            case "output edited":
                target.write_bytes(written.replace(b"@End", b"@Comment:\tmine\n@End"))
            case "force":
                options = ["--force"]
        again = align(talk, "-o", out, *options)
        assert not again["files"][0]["unchanged"]
        assert again["computed"] > 0
        assert (target.read_bytes() == written) == (what != "source")
        assert align(talk, "-o", out, *(["--redo"] if what == "option" else []))["computed"] == 0

    def test_a_file_with_words_that_cannot_be_said_is_right_and_its_report_repeated(
        self, align: Align, talk: Path, tmp_path: Path
    ) -> None:
        source = talk / "play.cha"
        source.write_text(source.read_text("utf-8").replace("blimbo", "привет", 1), encoding="utf-8")
        first = align(talk, "-o", tmp_path / "out", status=1)
        assert first["files"][0]["missing"]
        second = align(talk, "-o", tmp_path / "out", status=1)
        assert second["computed"] == 0
        assert second["files"][0]["missing"] == first["files"][0]["missing"]
        assert "привет" in second["said"]

    def test_a_file_that_failed_is_tried_again(self, align: Align, talk: Path, tmp_path: Path) -> None:
        (talk / "play.flac").rename(tmp_path / "elsewhere.flac")
        assert align(talk, "-o", tmp_path / "out", status=1)["files"][0]["status"] == "failed"
        (tmp_path / "elsewhere.flac").rename(talk / "play.flac")
        assert align(talk, "-o", tmp_path / "out")["computed"] > 0

    def test_damaged_records_cost_one_warning(
        self, align: Align, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        align(talk, "-o", tmp_path / "out")
        (path,) = (tmp_path / "state").rglob("*.sqlite")
        path.write_bytes(b"this is no database" * 1000)
        again = align(talk, "-o", tmp_path / "out")
        assert again["said"].count("warning:") == 1
        assert again["computed"] > 0
        assert "warning" not in align(talk, "-o", tmp_path / "out")["said"]

    def test_no_server_is_still_an_error(self, align: Align, talk: Path, tmp_path: Path) -> None:
        align(talk, "-o", tmp_path / "out")
        words = ("align", str(talk), "-o", str(tmp_path / "out"), "--server", f"unix:{tmp_path}/none.sock")
        done = subprocess.run([sys.executable, "-m", "align_client", *words], capture_output=True, check=False)
        assert done.returncode == 3


class TestReuse:
    def test_aligning_an_output_again_sends_nothing_and_changes_nothing(
        self, align: Align, corpus: Path, tmp_path: Path
    ) -> None:
        media = ("--media-dir", corpus / "0")
        align(corpus / "0", "-o", tmp_path / "1")
        again = align(tmp_path / "1", "-o", tmp_path / "2", *media)
        assert again["computed"] == 0
        totals = again["totals"]
        assert totals["utterances_reused"] > 0
        assert totals["words_aligned"] == totals["words"] > 0
        assert outputs(tmp_path / "1") == outputs(tmp_path / "2")
        redone = align(tmp_path / "1", "-o", tmp_path / "3", *media, "--redo")
        assert redone["computed"] > 0
        assert redone["totals"]["utterances_reused"] == 0
        assert outputs(tmp_path / "1") == outputs(tmp_path / "3")

    def test_corrected_times_are_kept_and_what_is_incomplete_is_aligned(
        self, align: Align, talk: Path, tmp_path: Path
    ) -> None:
        align(talk, "-o", tmp_path / "1")
        path = talk / "play.cha"
        lines = (tmp_path / "1" / "play.cha").read_text("utf-8").splitlines(keepends=True)
        tiers = [number for number, line in enumerate(lines) if line.startswith("%wor")]
        whole = "".join(lines)
        corrected = lines[tiers[0]] = moved(lines[tiers[0]])
        lines[tiers[1]] = lines[tiers[1]].split("\x15", 1)[0] + ".\n"
        path.write_text("".join(lines), encoding="utf-8")
        checked = subprocess.run(
            [sys.executable, "-m", "align_client", "check", str(path)], capture_output=True, text=True, check=False
        )
        assert f"{len(tiers) - 1} utterances keep the %wor they have" in checked.stdout
        done = align(talk, "--in-place")
        assert done["computed"] == 1
        assert done["totals"]["utterances_reused"] == len(tiers) - 1
        assert corrected in path.read_text("utf-8")
        assert align(talk, "--in-place")["files"][0]["unchanged"]
        redone = align(talk, "--in-place", "--redo")
        assert redone["computed"] > 1
        assert path.read_text("utf-8") == whole


def moved(wor: str) -> str:
    """The tier with its first word a little longer, as a person would drag its edge."""
    before, times, rest = wor.split("\x15", 2)
    start, end = map(int, times.split("_"))
    return f"{before}\x15{max(0, start - 7)}_{end}\x15{rest}"


def test_utterances_that_come_from_the_servers_cache_are_counted(
    align: Align, talk: Path, tmp_path: Path, room: Path
) -> None:
    (room / "server.toml").write_text(f'cache_dir = "{room / "results"}"\n', encoding="utf-8")
    keeping = launch(room / "align.sock", "--cache", "16M", "--config", str(room / "server.toml"))
    try:
        first = align(talk, "-o", tmp_path / "out", at=keeping)
        assert (first["totals"]["utterances_cached"], first["computed"] > 0) == (0, True)
        second = align(talk, "-o", tmp_path / "out", "--force", at=keeping)
        assert second["computed"] == 0
        assert second["totals"]["utterances_cached"] == first["files"][0]["utterances_aligned"]
        assert "cached" in second["said"]
    finally:
        keeping.stop()


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """What a run that nobody disturbs writes."""
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(server, corpus, "-o", out), check=True, capture_output=True, timeout=200)
    return outputs(out)


class TestInterrupted:
    def kill_and_go_on(
        self, align: Align, server: ServerProcess, corpus: Path, out: Path, wanted: dict[Path, bytes], kills: int
    ) -> None:
        """Kill runs at random moments; whatever is seen is whole, and a run to the end makes the rest."""
        for _ in range(kills):
            running = subprocess.Popen(command(server, corpus, "-o", out, "--jobs", "2"), stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0.4, 1.6))  # noqa: S311  any moment will do
            running.kill()
            running.wait()
            assert outputs(out).items() <= wanted.items()
        there = len(outputs(out))
        last = align(corpus, "-o", out)
        # One that was written and not yet recorded is written again.
        assert last["totals"]["unchanged"] >= there - 2 * kills
        assert outputs(out) == wanted
        assert align(corpus, "-o", out)["computed"] == 0

    def test_a_killed_run_goes_on_where_it_stopped(
        self, align: Align, server: ServerProcess, corpus: Path, tmp_path: Path, undisturbed: dict[Path, bytes]
    ) -> None:
        self.kill_and_go_on(align, server, corpus, tmp_path / "out", undisturbed, kills=3)

    @pytest.mark.slow
    def test_however_often_it_is_killed(
        self, align: Align, server: ServerProcess, corpus: Path, tmp_path: Path, undisturbed: dict[Path, bytes]
    ) -> None:
        for number in range(2):  # benchmarks/kills.py does it fifty times, and kills the server too
            self.kill_and_go_on(align, server, corpus, tmp_path / str(number), undisturbed, kills=2)

    def test_two_runs_at_once_write_the_same(
        self, align: Align, server: ServerProcess, corpus: Path, tmp_path: Path, undisturbed: dict[Path, bytes]
    ) -> None:
        words = command(server, corpus, "-o", tmp_path / "out")
        both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for running in both:
            _, said = running.communicate(timeout=200)
            assert running.returncode == 0, said
            assert "warning" not in said
        assert outputs(tmp_path / "out") == undisturbed
        assert align(corpus, "-o", tmp_path / "out")["computed"] == 0
