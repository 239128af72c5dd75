"""The records of outputs: kept, shared, forgotten in time, and never in the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align_client import records as module
from align_client.records import Records

VALUES = {"output": "ab12", "report": {"words": 3}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outputs.sqlite"


def kept(path: Path, target: Path) -> object:
    with Records(path) as records:
        assert not records.warning
        return records.find(target)


def test_what_was_kept_is_found_by_the_next_process(path: Path, tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80.cha")  # a name that is no UTF-8
    target.touch()
    with Records(path) as records:
        assert records.find(target) is None
        records.keep(target, {"output": "old"})
        records.keep(target, VALUES)
    assert kept(path, target) == VALUES
    assert kept(path, tmp_path / "other.cha") is None


def test_only_their_owner_can_look_at_them(path: Path) -> None:
    Records(path).close()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_outputs_that_are_gone_and_those_of_long_ago_are_forgotten_once_a_day(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, gone, late = tmp_path / "here", tmp_path / "gone", tmp_path / "late"
    for target in (here, gone, late):
        target.touch()
    now = time.time()
    with Records(path) as records:
        monkeypatch.setattr(time, "time", lambda: now - module.KEPT_S - 10)
        records.keep(here, VALUES)
        monkeypatch.setattr(time, "time", lambda: now)
        records.keep(gone, VALUES)
        records.keep(late, VALUES)
        gone.unlink()
    assert [kept(path, target) for target in (here, gone, late)] == [None, None, VALUES]
    late.unlink()
    assert kept(path, late) == VALUES
    assert kept(path, late) == VALUES  # they were looked through today
    monkeypatch.setattr(time, "time", lambda: now + module.DAY_S)
    assert kept(path, late) == VALUES
    assert kept(path, late) is None


@pytest.mark.parametrize("damage", [b"this is no database" * 400, None])
def test_a_damaged_file_costs_its_records_and_one_warning(path: Path, tmp_path: Path, damage: bytes | None) -> None:
    target = tmp_path / "a.cha"
    target.touch()
    with Records(path) as records:
        for number in range(300):
            records.keep(target.with_name(f"{number}.cha"), VALUES)
    if damage is None:  # all but the first page
        size = path.stat().st_size
        assert size > 4096
        damage = path.read_bytes()[:4096] + b"\xff" * (size - 4096)
    path.write_bytes(damage)
    with Records(path) as records:
        records.find(target)
        records.keep(target, VALUES)
        records.keep(target, VALUES)
        assert "damaged" in records.warning
        assert records.find(target) == VALUES
    assert kept(path, target) == VALUES


def test_a_record_that_cannot_be_read_is_none(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.cha"
    target.touch()
    with Records(path) as records:
        records.keep(target, VALUES)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE outputs_1 SET record = x'0102'")
    connection.close()
    assert kept(path, target) is None


def test_a_folder_where_nothing_can_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Records(tmp_path / "file" / "outputs.sqlite") as records:
        records.keep(tmp_path / "a.cha", VALUES)
        assert records.find(tmp_path / "a.cha") is None
        assert "cannot be used" in records.warning


def test_many_processes_write_at_once(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from align_client.records import Records\n"
        "with Records(Path(sys.argv[1])) as records:\n"
        "    for number in range(40): records.keep(Path(f'{sys.argv[2]}-{number}'), {'by': sys.argv[2]})\n"
        "    assert not records.warning, records.warning\n"
    )
    names = [str(tmp_path / letter) for letter in "abcd"]
    for name in names:
        for number in range(40):
            (tmp_path / f"{name}-{number}").touch()
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in names]
    assert [process.wait(60) for process in running] == [0] * 4
    with Records(path) as records:
        assert all(records.find(tmp_path / f"{name}-{n}") == {"by": name} for name in names for n in range(40))


def test_a_process_that_is_killed_leaves_them_whole(path: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; from align_client.records import Records\n"
        "records = Records(Path(sys.argv[1]))\n"
        "for number in itertools.count(): records.keep(Path(f'/{number}'), {'n': number}); print(number, flush=True)\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        process.kill()
        process.communicate()
        with Records(path) as records:
            assert records.find(Path("/19")) == {"n": 19}, said
            assert not records.warning
