"""The table that closes a run: what came of each file, and in all. For the terminal; report.py has the whole of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.table import Table

from align_client.report import FileReport, Status, Totals, totals

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_FILES: Final = 20  # lines; of more files those with the most words without a time are shown
HEADS: Final = ("file", "utterances", "words", "aligned", "unaligned", "repaired", "audio", "speed", "")
# For a terminal of 80 columns.
BROKEN: Final = {"utterances": "utter-\nances", "unaligned": "un-\naligned", "repaired": "re-\npaired"}


def print_summary(reports: Sequence[FileReport], seconds: float) -> None:
    """Print it to stderr: a table on a terminal, lines in columns elsewhere."""
    console = Console(stderr=True)
    rows, closing = _files(reports), _closing(reports, totals(reports, seconds))
    if console.is_terminal:
        console.print(_table(rows, closing))
        return
    for line in aligned([HEADS, *rows, *closing]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of each column under one another: names from the left, numbers from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if number in {0, last} else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _table(rows: Sequence[Sequence[str]], closing: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, head in enumerate(HEADS):
        is_text = number in {0, len(HEADS) - 1}
        table.add_column(
            BROKEN.get(head, head), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number == len(rows) - 1)
    for row in closing:
        table.add_row(*row, style="bold")
    return table


def _files(reports: Sequence[FileReport]) -> list[tuple[str, ...]]:
    worst = sorted(reports, key=lambda report: (not report.error, -report.unaligned))[:MOST_FILES]
    shown = {id(report) for report in worst}
    root = os.path.commonpath([report.source.absolute().parent for report in reports])
    return [
        (
            os.path.relpath(report.source.absolute(), root),
            *_counts(report, len(report.repaired)),
            *(("-", "-") if report.unchanged else (_clock(report.audio_s), f"{report.speed:.0f}x")),
            ", ".join(_state(report)),
        )
        for report in reports
        if id(report) in shown
    ]


def _closing(reports: Sequence[FileReport], sums: Totals) -> list[tuple[str, ...]]:
    rows = []
    if len(reports) > MOST_FILES:
        rows.append((f"... {len(reports) - MOST_FILES} more", *[""] * (len(HEADS) - 1)))
    if len(reports) > 1:
        times = (_clock(sums.audio_s), f"{sums.speed:.0f}x")
        made = [f"{count} {what}" for count, what in ((sums.failed, "failed"), (sums.unchanged, "unchanged")) if count]
        rows.append((f"{len(reports)} files", *_counts(sums, sums.repaired), *times, ", ".join(made + _origins(sums))))
    return rows


def _counts(of: FileReport | Totals, repaired: int) -> tuple[str, ...]:
    aligned_words = f"{100 * of.words_aligned // of.words}%" if of.words else "-"
    return (str(of.utterances), str(of.words), aligned_words, str(of.unaligned), str(repaired))


def _origins(of: FileReport | Totals) -> list[str]:
    """Of how many utterances the times were not simply computed."""
    counts = (
        (of.utterances_recovered, "recovered"),
        (of.utterances_reused, "reused"),
        (of.utterances_cached, "cached"),
    )
    return [f"{count} {what}" for count, what in counts if count]


def _state(report: FileReport) -> list[str]:
    if report.unchanged:
        return ["unchanged"]
    return [*([] if report.status is Status.ALIGNED else [report.status.value]), *_origins(report)]


def _clock(seconds: float) -> str:
    """As minutes and seconds, or with hours."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
