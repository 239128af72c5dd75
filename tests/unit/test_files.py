"""Files are written whole or not at all, and what killed writers leave goes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from align_client import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

WRITER = """
import sys, time
from pathlib import Path
from align_client import files
with files._temporary(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(file.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _as_another_process() -> Iterator[None]:
    """Folders are cleared once in a process."""
    files.clear.cache_clear()
    yield
    files.clear.cache_clear()


def writer(target: Path) -> subprocess.Popen[str]:
    """A process that has written half of a file."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline()
    return process


def hidden(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*"))


def test_a_half_file_of_a_killed_writer_goes_and_that_of_one_at_work_stays(tmp_path: Path) -> None:
    killed, at_work = writer(tmp_path / "a.cha"), writer(tmp_path / "b.cha")
    try:
        killed.kill()
        killed.wait()
        assert len(hidden(tmp_path)) == 2
        files.write_atomically(tmp_path / "a.cha", b"whole")
        (left,) = hidden(tmp_path)
        assert left.name.startswith(".b.cha.")
    finally:
        at_work.kill()
        at_work.wait()
        for process in (killed, at_work):
            assert process.stdout
            process.stdout.close()
    assert (tmp_path / "a.cha").read_bytes() == b"whole"


def test_hidden_files_of_others_stay(tmp_path: Path) -> None:
    for name in (".a.cha.0123abcd.tmp", ".a.cha.align-0123abc.tmp", "a.cha.align-0123abcd.tmp", ".align-0123abcd"):
        (tmp_path / name).write_bytes(b"")
    before = set(tmp_path.iterdir())
    files.write_atomically(tmp_path / "a.cha", b"whole")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "a.cha"}


def test_a_writer_whose_file_is_cleared_away_before_it_is_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = files._lock
    seen: list[str] = []

    def cleared(file: BinaryIO, how: int) -> bool:
        if not seen:
            (tmp_path / file.name).unlink()
        seen.append(file.name)
        return lock(file, how)

    monkeypatch.setattr(files, "_lock", cleared)
    files.write_atomically(tmp_path / "a.cha", b"whole")
    assert len(seen) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.cha"]
    assert (tmp_path / "a.cha").read_bytes() == b"whole"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.cha"
    target.write_bytes(b"before")
    with pytest.raises(FileNotFoundError):
        files.write_atomically(target, b"whole", mode_of=tmp_path / "none")
    assert target.read_bytes() == b"before"
    assert not hidden(tmp_path)
