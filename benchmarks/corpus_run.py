"""align-client over a corpus of CHAT files: one client on all of it, then eight on its parts at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import processes
from clients import CLIENTS, seconds_of
from inputs import Conversation, conversation, utterances
from processes import MB, Finished
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENT_MB = 80
FILES = 10
FILE_S = 120.0


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = utterances()
    apart = len(said) // FILES
    alone: list[float] = []
    together: list[float] = []
    peaks: list[int] = []
    with tempfile.TemporaryDirectory(prefix="ca-") as name, processes.server() as server:
        folder = Path(name)
        (folder / "corpus").mkdir()
        length = scale.of(FILE_S / 2, FILE_S)
        files = [
            conversation(folder / "corpus" / f"{number:02}.cha", said, length, first=number * apart)
            for number in range(FILES)
        ]
        audio_s = seconds_of(files)
        parts = [files[number::CLIENTS] for number in range(CLIENTS)]
        align(server.address, [files[:1]], folder / "warm-up")
        outputs = []
        for turn in range(scale.of(1, 2)):
            for shares, speeds in (([files], alone), (parts, together)):
                target = folder / f"out-{turn}-{len(shares)}"
                done = align(server.address, shares, target)
                speeds.append(audio_s / max(one.wall_s for one in done))
                outputs.append({path.name: path.read_bytes() for path in target.iterdir()})
                if shares is parts:
                    peaks.extend(one.peak for one in done)
        server_peak = processes.peak_rss(server.process.pid)
    assert all(len(output) == FILES for output in outputs)
    same = all(output == outputs[0] for output in outputs)
    most = server_peak + CLIENTS * max(peaks)
    limit = server_peak + CLIENTS * CLIENT_MB * MB
    about = f"{FILES} files, {audio_s:.0f} s, {sum(one.utterances for one in files)} utterances"
    return [
        Row(
            f"align-client from start to end, audio seconds per wall second: 1 process, {CLIENTS} at once ({about})",
            f"{spread(alone, 0)}, {spread(together, 0)}",
        ),
        Row(
            f"memory of the server and {CLIENTS} clients together, each at its peak",
            f"at most {most / MB:.0f} MB: server {server_peak / MB:.0f}, a client {min(peaks) / MB:.0f} "
            f"to {max(peaks) / MB:.0f}",
            f"at most {limit / MB:.0f} MB: server + {CLIENTS} x {CLIENT_MB}",
            most <= limit,
        ),
        Row(f"files written by {CLIENTS} clients and by one", "identical" if same else "differ", "identical", same),
    ]


def align(address: str, shares: Sequence[Sequence[Conversation]], target: Path) -> list[Finished]:
    """Run one client on each share, all at once. Raises RuntimeError where one fails."""
    commands = [
        processes.client_command("align", *(str(one.path) for one in share), "-o", str(target), "--server", address)
        for share in shares
    ]
    done = processes.run_together(commands)
    for one in done:
        if one.status not in {0, 1}:
            raise RuntimeError(f"align-client ended with {one.status}: {one.errors}")
    return done
