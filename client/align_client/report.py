"""What became of one CHAT file: the report that people read and programs parse."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from align_client.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

VERSION: Final = 2  # of the JSON report, as docs/report.schema.json describes it
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
    """What was and was not aligned in one file. `seconds` is the time from its start to its end.

    Words that were reused are aligned, too: they have their times. `cached` are utterances that the server had aligned
    before. Where `unchanged`, the output was right already, and all else is what was said when it was written.
    """

    source: Path
    target: Path | None
    status: Status = Status.NOTHING
    error: str = ""
    no_server: bool = False
    utterances: int = 0
    utterances_aligned: int = 0
    words: int = 0
    words_aligned: int = 0
    utterances_reused: int = 0  # they kept the %wor tier that they had
    words_reused: int = 0
    utterances_cached: int = 0
    utterances_recovered: int = 0  # they had no time, and were found in the recording
    unchanged: bool = False
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

    @property
    def unaligned(self) -> int:
        """How many words have no time."""
        return self.words - self.words_aligned

    @property
    def speed(self) -> float:
        """Seconds of audio that were aligned in a second."""
        return self.audio_s / self.seconds if self.seconds else 0.0

    def settle(self) -> None:
        """Set the status from the counts, and round the times to what a reader can use."""
        self.audio_s, self.seconds = round(self.audio_s, 3), round(self.seconds, 3)
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
            "unaligned": self.unaligned,
            "speed": round(self.speed, 1),
        }

    @classmethod
    def repeated(cls, values: Mapping[str, Any], source: Path, target: Path) -> FileReport:
        """What `as_json` said of an output that is right as it is. Raises KeyError, TypeError or ValueError."""
        given = {name: values[name] for name in cls.__slots__ if name not in {"no_server", "source", "target"}}
        for name in ("missing", "left_alone", "repaired", "warnings"):
            given[name] = [Note(**note) for note in given[name]]
        given |= {"status": Status(given["status"]), "unchanged": True}
        return cls(source=source, target=target, **given)


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all files of a run; `seconds` is the time that it took from its start to its end.

    What was reused, taken from the server's cache or heard is that of files that were aligned in this run; all else is
    of the unchanged ones too.
    """

    files: int
    failed: int
    unchanged: int
    utterances: int
    words: int
    words_aligned: int
    unaligned: int
    repaired: int
    utterances_reused: int
    utterances_cached: int
    utterances_recovered: int
    audio_s: float
    seconds: float
    speed: float


def totals(reports: Sequence[FileReport], seconds: float) -> Totals:
    """The sums of these reports."""
    done = [report for report in reports if not report.unchanged]
    audio_s = sum(report.audio_s for report in done)
    return Totals(
        files=len(reports),
        failed=sum(bool(report.error) for report in reports),
        unchanged=len(reports) - len(done),
        utterances=sum(report.utterances for report in reports),
        words=sum(report.words for report in reports),
        words_aligned=sum(report.words_aligned for report in reports),
        unaligned=sum(report.unaligned for report in reports),
        repaired=sum(len(report.repaired) for report in reports),
        utterances_reused=sum(report.utterances_reused for report in done),
        utterances_cached=sum(report.utterances_cached for report in done),
        utterances_recovered=sum(report.utterances_recovered for report in done),
        audio_s=round(audio_s, 3),
        seconds=round(seconds, 3),
        speed=round(audio_s / seconds, 1) if seconds else 0.0,
    )


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


def write_report(reports: Sequence[FileReport], path: Path, seconds: float) -> None:
    """Write the reports and their totals as JSON; `seconds` is what the run took. Raises OSError."""
    document = {
        "version": VERSION,
        "totals": asdict(totals(reports, seconds)),
        "files": [report.as_json() for report in reports],
    }
    write_atomically(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())
