"""What was measured about each model on this machine, kept across restarts in one small JSON file.

Knows nothing of how it is measured or used. A file that cannot be read costs a new measurement, nothing else.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import structlog

VERSION = 1  # of the file's layout and of the ways of measuring

log = structlog.get_logger()


@dataclass(slots=True)
class Facts:
    """What is known of one model on one device. 0 means not measured yet."""

    batch_ms: int = 0  # the smallest batch, in cost, that computes about as fast per second of audio as any
    rate: float = 0.0  # cost seconds per second, on all lanes together
    bytes_per_ms: float = 0.0  # peak memory of a batch, for each ms of its cost
    alone_bytes_per_ms: float = 0.0  # the same, measured while the server did nothing else
    resident_bytes: int = 0  # what loading the model added to the process
    failed_ms: int = 0  # the smallest cost of a batch that ran out of memory


class Learnt:
    """Facts by key, read once and written when told to. `path` None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._facts: dict[str, Facts] = {}
        if path is not None and path.exists():
            try:
                self._facts = _read(path)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning(
                    "what was learnt before is not readable and is measured anew", path=str(path), why=str(error)
                )

    def facts(self, key: str) -> Facts:
        """The facts of that key, to be changed in place; new ones where there are none."""
        return self._facts.setdefault(key, Facts())

    def save(self) -> None:
        """Write everything, whole or not at all. A folder that cannot be written is logged and no obstacle."""
        if self._path is None:
            return
        text = json.dumps(
            {"version": VERSION, "models": {k: asdict(f) for k, f in sorted(self._facts.items())}}, indent=1
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._path.parent, delete=False) as file:
                file.write(text + "\n")
            Path(file.name).replace(self._path)
        except OSError as error:
            log.warning("what was learnt could not be kept", path=str(self._path), why=str(error))


def _read(path: Path) -> dict[str, Facts]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["version"] != VERSION:
        return {}
    return {key: _facts(values) for key, values in content["models"].items()}


def _facts(values: dict[str, Any]) -> Facts:
    facts = Facts()
    for item in fields(Facts):
        known = getattr(facts, item.name)
        setattr(facts, item.name, type(known)(values.get(item.name, known)))
    return facts
