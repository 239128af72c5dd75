"""--adjust-bullets through the command line: bullets that were set too tight become as wide as their words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from support import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

EXAMPLES = PROJECT / "examples"
TIGHT_MS = 150
BULLET = re.compile("(?m)^(\\*.*)\x15(\\d+)_(\\d+)\x15")


def bullets(text: str) -> list[tuple[int, int] | None]:
    """That of each utterance, None where it has none."""
    lines = [BULLET.search(line) for line in text.splitlines() if line.startswith("*")]
    return [(int(found[2]), int(found[3])) if found else None for found in lines]


def test_bullets_that_are_too_tight_are_widened_only_where_that_is_wanted(
    server: ServerProcess, tmp_path: Path
) -> None:
    (source,) = sorted(EXAMPLES.glob("*.cha"))[:1]
    for path in EXAMPLES.glob(f"{source.stem}.*"):
        shutil.copy(path, tmp_path)
    text = source.read_text(encoding="utf-8")
    tight = BULLET.sub(lambda m: f"{m[1]}\x15{int(m[2]) + TIGHT_MS}_{int(m[3]) - TIGHT_MS}\x15", text)
    (tmp_path / source.name).write_text(tight, encoding="utf-8")
    results, reports = [], []
    for flags in ((), ("--adjust-bullets",)):
        out = tmp_path / f"out{len(flags)}"
        command = [sys.executable, "-m", "align_client", "align", str(tmp_path / source.name), "-o", str(out), *flags]
        done = subprocess.run(
            [*command, "--server", server.address, "--report", str(out) + ".json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in {0, 1}, done.stderr
        results.append(bullets((out / source.name).read_text(encoding="utf-8")))
        reports.append(json.loads((tmp_path / f"out{len(flags)}.json").read_text(encoding="utf-8"))["files"][0])
    before = bullets(tight)
    as_it_was, wide = (
        [(old, new) for old, new in zip(before, result, strict=True) if old and new] for result in results
    )
    assert all(new == old for old, new in as_it_was)
    assert all(new[0] <= old[0] and new[1] >= old[1] for old, new in wide)
    wider = sum(new != old for old, new in wide)
    assert wider >= len(wide) // 2
    assert sum("was widened" in note["why"] for note in reports[1]["repaired"]) == wider
    assert not any("was widened" in note["why"] for note in reports[0]["repaired"])
