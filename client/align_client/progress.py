"""Showing how a run goes: bars on a terminal, plain lines elsewhere, nothing from the SDK."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from align_client.report import complaints

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console

    from align_client.report import FileReport


class Progress(Protocol):
    """What a run tells of itself."""

    def started(self, source: Path, segments: int, audio_s: float) -> None:
        """A file was read: so much of it will be aligned."""

    def advanced(self, source: Path, audio_s: float) -> None:
        """One more segment of the file has its times."""

    def finished(self, report: FileReport) -> None:
        """The file is done, and its output written."""


class Silent:
    """Shows nothing."""

    def started(self, source: Path, segments: int, audio_s: float) -> None:
        """Show nothing."""

    def advanced(self, source: Path, audio_s: float) -> None:
        """Show nothing."""

    def finished(self, report: FileReport) -> None:
        """Show nothing."""


class Lines:
    """One plain line for each file that is done."""

    def __init__(self, console: Console, files: int) -> None:
        self._console = console
        self._files = files
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, source: Path, segments: int, audio_s: float) -> None:
        """Say nothing yet."""

    def advanced(self, source: Path, audio_s: float) -> None:
        """Say nothing yet."""

    def finished(self, report: FileReport) -> None:
        """One line."""
        self._done += 1
        self._console.print(
            f"[{self._done}/{self._files}] {summary(report)}", markup=False, highlight=False, soft_wrap=True
        )


class Bars(Lines):
    """One bar for each running file and one in all: segments, audio-seconds per second, time left."""

    def __init__(self, console: Console, files: int) -> None:
        super().__init__(console, files)
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[segments]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[Path, tuple[TaskID, int, int]] = {}
        self._since = time.monotonic()
        self._audio_s = 0.0
        self._total_s = 0.0
        self._all = self._bars.add_task("all files", total=None, segments=f"0/{files} files", rate="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, source: Path, segments: int, audio_s: float) -> None:
        """Add a bar."""
        task = self._bars.add_task(source.name, total=audio_s, segments=f"0/{segments} segments", rate="")
        self._tasks[source] = (task, 0, segments)
        self._total_s += audio_s
        self._bars.update(self._all, total=self._total_s)

    def advanced(self, source: Path, audio_s: float) -> None:
        """Move the file's bar and the bar of all."""
        task, done, segments = self._tasks[source]
        self._tasks[source] = (task, done + 1, segments)
        self._audio_s += audio_s
        rate = self._audio_s / max(time.monotonic() - self._since, 1e-3)
        self._bars.update(task, advance=audio_s, segments=f"{done + 1}/{segments} segments")
        self._bars.update(self._all, advance=audio_s, rate=f"{rate:.0f} s/s")

    def finished(self, report: FileReport) -> None:
        """Take the bar away and print the line."""
        if report.source in self._tasks:
            self._bars.remove_task(self._tasks.pop(report.source)[0])
        super().finished(report)
        self._bars.update(self._all, segments=f"{self._done}/{self._files} files")


def summary(report: FileReport) -> str:
    """One line on one file."""
    if report.error:
        return f"{report.source}: {report.status.value}: {report.error}"
    parts = [f"{report.words_aligned} of {report.words} words"]
    if report.unchanged:
        return f"{report.source}: unchanged: {report.status.value}, {parts[0]}"
    if report.left_alone:
        parts.append(f"{len(report.left_alone)} utterances left alone")
    if report.repaired:
        parts.append(f"{len(report.repaired)} times put in order")
    if report.utterances_reused:
        parts.append(f"{report.utterances_reused} utterances kept their %wor")
    if report.audio_s:
        parts.append(f"{report.audio_s:.1f} s of audio in {report.seconds:.1f} s")
    return f"{report.source}: {report.status.value}: {', '.join(parts)}"


def findings(report: FileReport) -> str:
    """What `check` says of one file."""
    if report.error:
        return summary(report)
    words = f"{report.words_aligned - report.words_reused} of {report.words} words"
    utterances = report.utterances_aligned - report.utterances_reused
    where = f"{utterances} of {report.utterances} utterances and {report.audio_s:.1f} s of audio"
    lines = [f"{report.source}: {words} would be aligned, in {where}"]
    if report.utterances_reused:
        lines[0] += f"; {report.utterances_reused} utterances keep the %wor they have, with {report.words_reused} words"
    lines += complaints(report.source, [*report.left_alone, *report.missing], report.warnings, most=None)
    return "\n".join(lines)
