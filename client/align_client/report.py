"""What became of one CHAT file: the report that people read and programs parse."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from align_client.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MOST_SHOWN: Final = 20  # notes of one file that are printed where there is a report to read


class Status(enum.Enum):
    """How a file ended."""

    ALIGNED = "aligned"  # every word that is spoken has a time
    PARTLY = "partly aligned"  # some has none: `missing` says which and why
    NOTHING = "nothing to align"  # written as it was
    FAILED = "failed"  # no output was written: `error` says why


@dataclass(frozen=True, slots=True)
class Note:
    """Something about one place of the file; line and column count from 1, and are 0 where it is about the whole."""

    line: int
    column: int
    text: str
    why: str


@dataclass(slots=True)
class FileReport:
    """What was and was not aligned in one file. `seconds` is the time from its start to its end."""

    source: Path
    target: Path | None
    status: Status = Status.NOTHING
    error: str = ""
    no_server: bool = False
    utterances: int = 0
    utterances_aligned: int = 0
    words: int = 0
    words_aligned: int = 0
    missing: list[Note] = field(default_factory=list)  # words without a time
    left_alone: list[Note] = field(default_factory=list)  # utterances that were not aligned
    repaired: list[Note] = field(default_factory=list)  # times that were put in order
    warnings: list[Note] = field(default_factory=list)
    audio_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left out."""
        return self.status in {Status.ALIGNED, Status.NOTHING}

    def settle(self) -> None:
        """Set the status from the counts."""
        if self.error:
            self.status = Status.FAILED
        elif self.missing or self.left_alone:
            self.status = Status.PARTLY
        else:
            self.status = Status.ALIGNED if self.words else Status.NOTHING

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        values = asdict(self)
        del values["no_server"]
        return {
            **values,
            "source": str(self.source),
            "target": None if self.target is None else str(self.target),
            "status": self.status.value,
            "audio_s": round(self.audio_s, 3),
            "seconds": round(self.seconds, 3),
        }


def complaints(
    source: Path, notes: Sequence[Note], warnings: Sequence[Note], most: int | None = MOST_SHOWN
) -> Iterator[str]:
    """The lines that tell of a file's notes, `most` of them (None: all), and of its warnings."""
    shown = notes[:most]
    yield from (f"{source}:{note.line}:{note.column}: {note.text}: {note.why}" for note in shown)
    if len(notes) > len(shown):
        yield f"{source}: {len(notes) - len(shown)} more; see --report"
    for note in warnings:
        place = f"{source}:{note.line}:{note.column}" if note.line else str(source)
        yield f"{place}: warning: {note.why}"


def write_report(reports: Sequence[FileReport], path: Path) -> None:
    """Write the reports and their totals as JSON. Raises OSError."""
    totals = {
        "files": len(reports),
        "failed": sum(bool(report.error) for report in reports),
        "words": sum(report.words for report in reports),
        "words_aligned": sum(report.words_aligned for report in reports),
        "audio_s": round(sum(report.audio_s for report in reports), 3),
    }
    document = {"version": 1, "totals": totals, "files": [report.as_json() for report in reports]}
    write_atomically(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())
