"""align-client over a corpus that it has aligned before, against the first time: both from start to end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import processes
from align_client import Client
from clients import seconds_of
from inputs import conversation, utterances
from rows import Row, Scale, faster, spread

FILES = 60
FILE_S = 120.0
LEAST = 20.0  # times


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = utterances()
    files = scale.of(FILES // 4, FILES)
    first: list[float] = []
    second: list[float] = []
    computed = 0
    with tempfile.TemporaryDirectory(prefix="ca-") as name, processes.server() as server, Client(server.address) as ask:
        folder = Path(name)
        (folder / "corpus").mkdir()
        talks = [
            conversation(folder / "corpus" / f"{number:03}.cha", said, FILE_S, first=number * 7)
            for number in range(files)
        ]
        _align(server.address, talks[0].path, folder / "warm-up")
        same = True
        for turn in range(scale.of(1, 3)):
            target = folder / f"out-{turn}"
            first.append(_align(server.address, folder / "corpus", target))
            written = {path.name: path.read_bytes() for path in target.iterdir()}
            assert len(written) == files
            before = ask.info().segments_done
            second.append(_align(server.address, folder / "corpus", target))
            computed += ask.info().segments_done - before
            same &= written == {path.name: path.read_bytes() for path in target.iterdir()}
    about = f"{files} files, {seconds_of(talks):.0f} s, {sum(talk.utterances for talk in talks)}"
    ratios = [slow / fast for slow, fast in zip(first, second, strict=True)]
    return [
        faster(
            f"align-client over a corpus for the second time, against the first ({about} utterances)", ratios, LEAST
        ),
        Row("seconds: the first time, the second", f"{spread(first)}, {spread(second, 2)}"),
        Row("segments that the server computed for the second time", str(computed), "0", computed == 0),
        Row("files after the first time and after the second", "identical" if same else "differ", "identical", same),
    ]


def _align(address: str, inputs: Path, target: Path) -> float:
    """The seconds that one run takes."""
    done = processes.run(*processes.client_command("align", str(inputs), "-o", str(target), "--server", address))
    if done.status not in {0, 1}:
        raise RuntimeError(f"align-client ended with {done.status}: {done.errors}")
    return done.wall_s
