"""The table that closes a run, and the sums under it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from align_client.report import FileReport, Note, totals
from align_client.summary import MOST_FILES, print_summary

if TYPE_CHECKING:
    import pytest


def report(name: str, **values: object) -> FileReport:
    made = FileReport(Path("corpus") / name, Path("out") / name, utterances=4, words=20, words_aligned=20)
    for field, value in values.items():
        setattr(made, field, value)
    made.settle()
    return made


def test_numbers_stand_under_one_another_and_the_last_line_has_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    missing = [Note(7, 13, "hola", "the model does not know this language")]
    reports = [
        report("long.cha", audio_s=3725.0, seconds=10.0, utterances_cached=3),
        report("a/b.cha", words_aligned=19, missing=missing, utterances_reused=2, audio_s=61.0, seconds=0.5),
        report("new.cha", audio_s=60.0, seconds=0.5, utterances_recovered=4, utterances_cached=1),
        report("same.cha", unchanged=True, audio_s=100.0, seconds=1.0, utterances_reused=4, utterances_recovered=4),
        report("bad.cha", error="not a CHAT file", utterances=0, words=0, words_aligned=0),
    ]
    print_summary(reports, 10.0)
    said = capsys.readouterr()
    assert said.out == ""
    rest = "1 failed, 1 unchanged, 4 recovered, 2 reused, 4 cached"
    assert said.err.splitlines() == [
        "file      utterances  words  aligned  unaligned  repaired    audio  speed",
        "long.cha           4     20     100%          0         0  1:02:05   372x  3 cached",
        "a/b.cha            4     20      95%          1         0     1:01   122x  partly aligned, 2 reused",
        "new.cha            4     20     100%          0         0     1:00   120x  4 recovered, 1 cached",
        "same.cha           4     20     100%          0         0        -      -  unchanged",
        "bad.cha            0      0        -          0         0     0:00     0x  failed",
        "5 files           16     80      98%          1         0  1:04:06   385x  " + rest,
    ]


def test_on_a_terminal_of_80_columns_no_number_and_no_word_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    missing = [Note(7, 13, "hola", "the model does not know this language")]
    of_each: dict[str, object] = {"audio_s": 36_000.0, "seconds": 10.0, "utterances": 12_345, "words": 123_456}
    origins: dict[str, object] = {"utterances_recovered": 1234, "utterances_reused": 5678, "utterances_cached": 9012}
    reports = [
        report(f"{name}.cha", **of_each, **origins, words_aligned=123_450, missing=missing) for name in ("ab", "cd")
    ]
    print_summary(reports, 10.0)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).splitlines()
    assert max(map(len, lines)) <= 80
    seen = " ".join(lines).replace(",", " ").split()
    for word in ("ab.cha", "12345", "123456", "99%", "10:00:00", "3600x", "partly", "recovered", "reused", "cached"):
        assert word in seen


def test_of_many_files_those_with_most_to_look_at_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [report(f"{number:03}.cha") for number in range(100)]
    reports[70].words_aligned = 3
    reports[90] = report("lost.cha", error="cannot read it")
    print_summary(reports, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MOST_FILES + 3
    assert [line.split()[0] for line in lines[-4:]] == ["070.cha", "lost.cha", "...", "100"]
    assert "... 80 more" in lines[-2]


def test_no_files_have_no_speed() -> None:
    assert totals([], 0.0).speed == 0
