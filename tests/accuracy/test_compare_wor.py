"""The %wor words are those of PyPI batchalign, but where docs/wor.md says otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Of what docs/wor.md lists, what these files have: underlining, digits with other marks, and breath in CA.
UNDERLINE = "\u0332"
LISTED = re.compile(r".*[0-9].*|h{2,}", re.IGNORECASE)


def compared(*arguments: str | Path) -> list[str]:
    python = os.environ.get("BATCHALIGN_PYTHON")
    if not python:
        pytest.skip("needs BATCHALIGN_PYTHON: the python of an environment with batchalign==0.10.7 from PyPI")
    command = [sys.executable, str(Path(__file__).with_name("compare_wor.py")), *map(str, arguments), python]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["reference"], ["align-cases"], ["reference", "--turns"], ["with-audio", "--turns"]],
    ids=" ".join,
)
def test_no_turn_differs_from_batchalign(corpus_dir: Path, arguments: list[str]) -> None:
    printed = compared(*arguments[1:], corpus_dir / "chat" / arguments[0])
    assert ", 0 turns differ" in printed[-1], printed


@pytest.mark.corpus
@pytest.mark.slow
def test_conversations_differ_from_batchalign_only_as_listed(corpus_dir: Path) -> None:
    only_as_listed(compared("--turns", corpus_dir / "chat" / "cabnc"))


@pytest.mark.slow
def test_generated_turns_differ_from_batchalign_only_as_listed() -> None:
    only_as_listed(compared("--generated", "200"))


def only_as_listed(printed: list[str]) -> None:
    differences = [line.split() for line in printed if line.startswith("    ")]
    assert differences, printed
    assert [unlisted(words) for words in differences[::2]] == [unlisted(words) for words in differences[1::2]]


def unlisted(line: list[str]) -> list[str]:
    """The words of a printed line, without what is listed; without the terminator where no word is left."""
    words = [word.replace(UNDERLINE, "") for word in line[1:] if not LISTED.fullmatch(word.replace(UNDERLINE, ""))]
    return words if any(c.isalnum() for word in words for c in word) else []
