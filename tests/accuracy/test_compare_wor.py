"""The %wor words are those of PyPI batchalign."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["reference", "align-cases"])
def test_no_turn_differs_from_batchalign(corpus_dir: Path, folder: str) -> None:
    python = os.environ.get("BATCHALIGN_PYTHON")
    if not python:
        pytest.skip("needs BATCHALIGN_PYTHON: the python of an environment with batchalign==0.10.7 from PyPI")
    command = [
        sys.executable,
        str(Path(__file__).with_name("compare_wor.py")),
        str(corpus_dir / "chat" / folder),
        python,
    ]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert ", 0 turns differ" in printed.splitlines()[-1], printed
