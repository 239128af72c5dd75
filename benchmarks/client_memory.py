"""Memory of align-client over a long recording, and what `align-client --help` loads."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import processes
from inputs import conversation, utterances
from processes import MB
from rows import Row, Scale, spread

HOURS, QUICK_HOURS = 2.0, 0.25
SHORT_S = 3.5  # seconds: turns of a conversation, so that there are thousands of them
LIMIT_MB = 80
GROWTH_MB = 3  # from the second quarter of the run to the last: the times found so far
HEAVY = ("grpc", "numpy", "soundfile", "torch")

_LOADED = """
import json, sys
from align_client.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print("\\n" + json.dumps([name for name in sys.argv[1:] if name in sys.modules]))
"""


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    hours = scale.of(QUICK_HOURS, HOURS)
    with tempfile.TemporaryDirectory(prefix="ca-") as name, processes.server() as server:
        short = [one for one in utterances() if one.seconds < SHORT_S]
        long = conversation(Path(name) / "long.cha", short, hours * 3600)
        command = ["align", str(long.path), "-o", str(Path(name) / "out"), "--server", server.address]
        done = processes.run(*processes.client_command(*command))
    if done.status not in {0, 1}:
        raise RuntimeError(f"align-client ended with {done.status}: {done.errors}")
    quarters = [
        max(rss for elapsed, rss in done.rss if quarter <= 4 * elapsed / done.wall_s < quarter + 1)
        for quarter in range(4)
    ]
    growth = (quarters[3] - quarters[1]) / MB
    met = done.peak <= LIMIT_MB * MB and growth <= GROWTH_MB
    starts = [processes.run(*processes.client_command("--help")).wall_s for _ in range(5)]
    loaded = _loaded_for_help()
    return [
        Row(
            f"memory of align-client over a recording of {hours:g} h ({long.utterances} utterances)",
            f"peak {done.peak / MB:.0f} MB; by quarter of the run {', '.join(f'{rss / MB:.0f}' for rss in quarters)}",
            f"at most {LIMIT_MB} MB, flat",
            met,
        ),
        Row(
            f"modules of {', '.join(HEAVY)} that align-client --help imports",
            ", ".join(loaded) or "none",
            "neither grpc nor torch",
            not {"grpc", "torch"} & set(loaded),
        ),
        Row("align-client --help, from start to end", f"{spread(starts, 2)} s"),
    ]


def _loaded_for_help() -> list[str]:
    done = subprocess.run([sys.executable, "-c", _LOADED, *HEAVY], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found
