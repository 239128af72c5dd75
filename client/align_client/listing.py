"""How the words of one recording are shown: as a table, or as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from align_client.sdk.types import AlignResult


def print_words(result: AlignResult) -> None:
    """Print a table of the words with their times in seconds."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"times in seconds, by {result.model}", title_justify="left"
    )
    table.add_column("word")
    for head in ("start", "end", "score"):
        table.add_column(head, justify="right")
    table.add_column("")
    for word in result.words:
        times = [f"{value:.3f}" if value is not None else "-" for value in (word.start, word.end)]
        table.add_row(word.text, *times, f"{word.score:.2f}" if word.reason is None else "-", word.why)
    Console().print(table)


def word_values(result: AlignResult) -> dict[str, Any]:
    """The words as JSON has them, times in seconds."""
    return {
        "model": result.model,
        "words": [
            {"word": word.text, "start": word.start, "end": word.end, "score": round(word.score, 4)}
            | ({} if word.reason is None else {"reason": word.reason.name.lower(), "detail": word.why})
            for word in result.words
        ],
    }
