"""What users install: an sdist and a wheel that carry the generated contract and the models' data."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from support import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

GENERATED = [f"align_proto/v1/align_pb2{ending}" for ending in (".py", ".pyi", "_grpc.py")]
DATA = ["align_server/engines/sphinx/g2p.npz", "align_server/engines/sphinx/supplement.dict", "align_client/py.typed"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_is_built_from_the_sdist_and_both_are_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(PROJECT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("chatalign-*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert names.issuperset([*GENERATED, *DATA])
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert "License-Expression: BSD-3-Clause" in metadata
    assert not [line for line in required if "torch" in line or "transformers" in line]
    with tarfile.open(next(tmp_path.glob("chatalign-*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert held.issuperset(
        [f"proto/{name}" for name in GENERATED] + ["LICENSE", "README.md", "Makefile", "constraints.txt"]
    )
