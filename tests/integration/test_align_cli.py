"""`align-client` as its user runs it: real processes, real files, wrong inputs included."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

if TYPE_CHECKING:
    from support import ServerProcess

Run = subprocess.CompletedProcess[str]
Client = Callable[..., Run]
Speech = tuple[npt.NDArray[np.float32], int]
CHAT = (
    "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tCHI Child\n@ID:\teng|c|CHI|||||Child|||\n"
    "@Media:\t{media}\n*CHI:\thello big world . \x15100_1900\x15\n%com:\tkept   as it is \n@End\n"
)


@pytest.fixture
def client(server: ServerProcess) -> Client:
    """Runs `align-client` against the shared server."""

    def run(*words: str | Path, address: str = server.address) -> Run:
        command = [sys.executable, "-m", "align_client", *map(str, words)]
        environment = {**os.environ, "ALIGN_SERVER": address, "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)

    return run


@pytest.fixture
def speech(examples: Path) -> Speech:
    """Three seconds in which someone speaks."""
    samples, rate = soundfile.read(examples / "play.flac", dtype="float32")
    return samples[: 3 * rate], rate


def transcript(folder: Path, name: str = "talk", media: str = "talk, audio") -> Path:
    path = folder / f"{name}.cha"
    path.write_bytes(CHAT.format(media=media).encode())
    return path


def without_times(data: bytes) -> bytes:
    """What must not change: the file less its %wor lines and time bullets."""
    data = re.sub(rb"^%wor:.*(?:\r?\n\t.*)*\r?\n", b"", data, flags=re.MULTILINE)
    return re.sub(rb" ?\x15[^\x15]*\x15", b"", data)


class TestOutputs:
    def test_a_folder_is_aligned_and_nothing_but_times_changes(
        self, client: Client, examples: Path, tmp_path: Path
    ) -> None:
        done = client("align", examples, "-o", tmp_path / "out", "--report", tmp_path / "report.json")
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "report.json").read_text())
        assert [file["status"] for file in report["files"]] == ["aligned", "aligned"]
        assert report["totals"]["words"] == report["totals"]["words_aligned"] > 150
        for source in examples.glob("*.cha"):
            target = tmp_path / "out" / source.name
            assert target.read_bytes() != source.read_bytes()
            assert without_times(target.read_bytes()) == without_times(source.read_bytes())

    def test_word_times_lie_in_order_inside_the_recording(self, client: Client, examples: Path, tmp_path: Path) -> None:
        assert client("align", examples / "play.cha", "-o", tmp_path).returncode == 0
        for line in (tmp_path / "play.cha").read_text(encoding="utf-8").splitlines():
            if line.startswith("%wor"):
                times = [int(t) for pair in re.findall("\x15(\\d+)_(\\d+)\x15", line) for t in pair]
                assert times == sorted(times)
                assert times[-1] <= 43_000

    def test_aligning_the_result_again_changes_nothing(self, client: Client, examples: Path, tmp_path: Path) -> None:
        media = ("--media-dir", examples)
        assert client("align", examples / "interview.cha", "-o", tmp_path / "1").returncode == 0
        assert client("align", tmp_path / "1" / "interview.cha", "-o", tmp_path / "2", *media).returncode == 0
        assert (tmp_path / "1" / "interview.cha").read_bytes() == (tmp_path / "2" / "interview.cha").read_bytes()

    def test_trees_and_lists_keep_their_shape(self, client: Client, examples: Path, tmp_path: Path) -> None:
        deep = tmp_path / "in" / "a" / "b"
        deep.mkdir(parents=True)
        shutil.copy(examples / "play.cha", deep)
        (tmp_path / "list.txt").write_text(f"# mine\n{tmp_path / 'in'}\n\n{examples / 'interview.cha'}\n")
        done = client("align", f"@{tmp_path / 'list.txt'}", "-o", tmp_path / "out", "--media-dir", examples)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "a" / "b" / "play.cha").exists()
        assert (tmp_path / "out" / "interview.cha").exists()

    def test_in_place_keeps_the_permissions_and_leaves_no_other_file(
        self, client: Client, examples: Path, tmp_path: Path
    ) -> None:
        path = Path(shutil.copy(examples / "play.cha", tmp_path))
        path.chmod(0o640)
        assert client("align", path, "--in-place", "--media-dir", examples).returncode == 0
        assert b"%wor" in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o640
        assert [item.name for item in tmp_path.iterdir()] == ["play.cha"]

    def test_no_wor_writes_no_tier(self, client: Client, examples: Path, tmp_path: Path) -> None:
        assert client("align", examples / "play.cha", "-o", tmp_path, "--no-wor").returncode == 0
        assert b"%wor" not in (tmp_path / "play.cha").read_bytes()

    def test_words_prints_a_table_or_json(self, client: Client, tmp_path: Path, speech: Speech) -> None:
        soundfile.write(tmp_path / "talk.wav", *speech)
        table = client("words", tmp_path / "talk.wav", "--text", "Hello, 2 worlds!")
        assert table.returncode == 0, table.stderr
        assert [line.split()[0] for line in table.stdout.splitlines()[4:] if line.strip()] == ["Hello", "two", "worlds"]
        (tmp_path / "text.txt").write_text("hello world")
        done = client("words", tmp_path / "talk.wav", "--text-file", tmp_path / "text.txt", "--format", "json")
        words = json.loads(done.stdout)["words"]
        assert [word["word"] for word in words] == ["hello", "world"]
        assert 0 <= words[0]["start"] < words[0]["end"] <= words[1]["start"] < words[1]["end"] <= 3

    def test_check_says_what_would_be_done_without_a_server(
        self, client: Client, examples: Path, tmp_path: Path
    ) -> None:
        good = client("check", examples, address="unix:/nowhere.sock")
        assert good.returncode == 0, good.stdout
        assert "words would be aligned" in good.stdout
        bad = client("check", transcript(tmp_path), address="unix:/nowhere.sock")
        assert bad.returncode == 1
        assert "talk" in bad.stdout

    def test_check_and_align_count_the_same_words_of_a_ca_transcript(
        self, client: Client, tmp_path: Path, speech: Speech
    ) -> None:
        soundfile.write(tmp_path / "talk.wav", *speech)
        path = transcript(tmp_path)
        turns = "@Options:\tCA\n*CHI:\toh my \x15100_900\x15\n*CHI:\tdear\n*CHI:\tme too \x152000_2900\x15\n@End\n"
        path.write_text(re.sub(r"(?s)@Media.*", "@Media:\ttalk, audio\n" + turns, path.read_text()))
        assert client("check", path, "--report", tmp_path / "check.json").returncode == 0
        assert client("align", path, "-o", tmp_path / "out", "--report", tmp_path / "align.json").returncode == 0
        counted = [
            json.loads((tmp_path / f"{name}.json").read_text())["totals"]["words"] for name in ("check", "align")
        ]
        assert counted == [1, 1]


class TestAudio:
    """Whatever the recording is, the words get times, or the report says why not."""

    def align(self, client: Client, folder: Path) -> tuple[Run, dict[str, Any]]:
        done = client("align", transcript(folder), "-o", folder / "out", "--report", folder / "r.json")
        return done, json.loads((folder / "r.json").read_text())["files"][0]

    @pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
    def test_any_sample_rate(self, client: Client, tmp_path: Path, speech: Speech, rate: int) -> None:
        import soxr

        soundfile.write(tmp_path / "talk.wav", soxr.resample(speech[0], speech[1], rate), rate)
        done, report = self.align(client, tmp_path)
        assert (done.returncode, report["words_aligned"]) == (0, 3), done.stderr

    def test_stereo_and_clipped(self, client: Client, tmp_path: Path, speech: Speech) -> None:
        loud = np.clip(speech[0] * 20, -1, 1)
        soundfile.write(tmp_path / "talk.flac", np.stack([loud, loud], axis=1), speech[1])
        done, report = self.align(client, tmp_path)
        assert (done.returncode, report["words_aligned"]) == (0, 3), done.stderr

    def test_not_a_number_is_refused_with_its_place(self, client: Client, tmp_path: Path, speech: Speech) -> None:
        broken = speech[0].copy()
        broken[1000] = np.nan
        soundfile.write(tmp_path / "talk.wav", broken, speech[1], subtype="FLOAT")
        done, report = self.align(client, tmp_path)
        assert done.returncode == 1
        assert report["status"] == "failed"
        assert "talk.wav" in report["error"]
        assert not (tmp_path / "out" / "talk.cha").exists()

    def test_zero_length(self, client: Client, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "talk.wav", np.zeros(0, np.float32), 16_000)
        done, report = self.align(client, tmp_path)
        assert done.returncode == 1
        assert "the recording at 0.000 s" in report["left_alone"][0]["why"]

    def test_shorter_than_the_bullets(self, client: Client, tmp_path: Path, speech: Speech) -> None:
        soundfile.write(tmp_path / "talk.wav", speech[0][:8000], speech[1])
        done, report = self.align(client, tmp_path)
        assert done.returncode == 1
        assert report["left_alone"][0]["line"] == 7
        assert "recording" in report["left_alone"][0]["why"]
        assert (tmp_path / "out" / "talk.cha").read_bytes() == (tmp_path / "talk.cha").read_bytes()

    def test_silence_says_that_there_is_no_signal(self, client: Client, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "talk.wav", np.zeros(48_000, np.int16), 16_000)
        done, report = self.align(client, tmp_path)
        assert done.returncode == 1
        assert [(note["line"], note["text"]) for note in report["missing"]] == [(7, "hello"), (7, "big"), (7, "world")]
        assert "signal" in report["missing"][0]["why"]
        assert (tmp_path / "out" / "talk.cha").read_bytes() == (tmp_path / "talk.cha").read_bytes()

    def test_not_audio_at_all(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "talk.wav").write_text("this is no recording")
        done, report = self.align(client, tmp_path)
        assert (done.returncode, report["status"]) == (1, "failed")
        assert "talk.wav" in done.stderr


class TestWrongInputs:
    @pytest.mark.parametrize(
        "media", ["../secret, audio", "/etc/passwd, audio", "https://example.org/a.wav, audio", "link, audio"]
    )
    def test_media_outside_of_the_allowed_folders_are_never_opened(
        self,
        client: Client,
        tmp_path: Path,
        media: str,
        speech: Speech,
    ) -> None:
        soundfile.write(tmp_path / "secret.wav", *speech)
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / "link.wav").symlink_to(tmp_path / "secret.wav")
        done = client("align", transcript(inside, media=media), "-o", tmp_path / "out")
        assert done.returncode == 1
        assert "failed" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_one_bad_file_leaves_the_others_done(self, client: Client, examples: Path, tmp_path: Path) -> None:
        inputs = tmp_path / "in"
        shutil.copytree(examples, inputs)
        (inputs / "latin.cha").write_bytes(b"@UTF8\n@Begin\n*CHI:\tcaf\xe9 .\n@End\n")
        (inputs / "novel.cha").write_text("It was the best of times.\n")
        (inputs / "folder.cha").mkdir()
        transcript(inputs, "lost")
        done = client("align", inputs, "-o", tmp_path / "out", "--report", tmp_path / "r.json")
        assert done.returncode == 1
        files = {Path(file["source"]).name: file for file in json.loads((tmp_path / "r.json").read_text())["files"]}
        assert {name for name, file in files.items() if file["status"] == "aligned"} == {"play.cha", "interview.cha"}
        assert "UTF-8" in files["latin.cha"]["error"]
        assert "CHAT" in files["novel.cha"]["error"]
        assert "talk" in files["lost.cha"]["error"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["interview.cha", "play.cha"]

    def test_a_folder_named_like_a_transcript_is_told_from_one(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "a.cha").mkdir()
        done = client("align", tmp_path / "a.cha", "-o", tmp_path / "out")
        assert done.returncode == 1
        assert "directory" in done.stderr

    def test_an_output_that_cannot_be_written_costs_that_file_alone(
        self, client: Client, examples: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        (out / "play.cha").mkdir(parents=True)
        done = client("align", examples, "-o", out)
        assert done.returncode == 1
        assert "cannot write" in done.stderr
        assert b"%wor" in (out / "interview.cha").read_bytes()

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            (["align", "nothing.cha", "-o", "out"], "nothing.cha"),
            (["align", "{examples}"], "--in-place"),
            (["align", "{examples}", "-o", "out", "--in-place"], "--in-place"),
            (["align", "@missing.txt", "-o", "out"], "missing.txt"),
            (["align", "{examples}", "-o", "{examples}"], "overwritten"),
            (["align", "{examples}", "-o", "out", "--media-dir", "nowhere"], "nowhere"),
            (["align", "{examples}", "-o", "out", "--model", "nope"], "sphinx-en-us"),
            (["words", "{examples}/play.flac"], "--text"),
            (["words", "{examples}/play.flac", "--text", "!"], "no word"),
        ],
    )
    def test_wrong_usage_exits_with_2_and_says_what_to_do(
        self, client: Client, examples: Path, words: list[str], hint: str
    ) -> None:
        done = client(*(word.format(examples=examples) for word in words))
        assert done.returncode == 2, done.stderr
        assert hint in done.stderr

    def test_two_inputs_for_one_output_are_refused(self, client: Client, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).mkdir()
        done = client("align", transcript(tmp_path / "a"), transcript(tmp_path / "b"), "-o", tmp_path / "out")
        assert done.returncode == 2
        assert "both be written" in done.stderr

    def test_no_server_exits_with_3(self, client: Client, examples: Path, tmp_path: Path) -> None:
        done = client("align", examples, "-o", tmp_path, address=f"unix:{tmp_path}/none.sock")
        assert done.returncode == 3
        assert "align-server start" in done.stderr
        done = client("words", examples / "play.flac", "--text", "hello", address=f"unix:{tmp_path}/none.sock")
        assert done.returncode == 3

    def test_words_no_model_can_say_are_listed_with_their_place(
        self,
        client: Client,
        tmp_path: Path,
        speech: Speech,
    ) -> None:
        soundfile.write(tmp_path / "talk.wav", *speech)
        path = transcript(tmp_path)
        path.write_text(path.read_text().replace("big", "привет hola@s:spa"), encoding="utf-8")
        done = client("align", path, "-o", tmp_path / "out")
        assert done.returncode == 1
        assert "talk.cha:7:13: привет:" in done.stderr
        assert "talk.cha:7:20: hola" in done.stderr
        wor = next(line for line in (tmp_path / "out" / "talk.cha").read_text("utf-8").splitlines() if "%wor" in line)
        assert re.fullmatch("%wor:\thello \x15\\d+_\\d+\x15 привет hola world \x15\\d+_\\d+\x15 .", wor)


def test_start_server_starts_one(client: Client, room: Path, examples: Path, tmp_path: Path) -> None:
    address = f"unix:{room}/own.sock"
    try:
        done = client("align", examples / "play.cha", "-o", tmp_path, "--start-server", address=address)
        assert done.returncode == 0, done.stderr
        assert b"%wor" in (tmp_path / "play.cha").read_bytes()
    finally:
        stop = [sys.executable, "-m", "align_server", "stop", "--socket", str(room / "own.sock")]
        assert subprocess.run(stop, capture_output=True, check=False, timeout=60).returncode == 0
