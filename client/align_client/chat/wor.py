"""The %wor tier: the words of an utterance with the times of each, read and written.

Knows the form of the line; does not know which words belong on it (words.py) nor where it stands (document.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from align_client.chat.marks import TIME_BULLET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Bullet:
    """A stretch of the recording in milliseconds, as a time bullet states it."""

    start_ms: int
    end_ms: int

    def __str__(self) -> str:
        return f"\x15{self.start_ms}_{self.end_ms}\x15"


@dataclass(frozen=True, slots=True)
class WordTime:
    """When a word was said, in milliseconds from the start of the recording."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class WorWord:
    """One token of an existing %wor tier; a separator or terminator is one too, without a time.

    `line` and `column` count from 1, the column in characters; 0 where it does not come from a file.
    """

    text: str
    time: WordTime | None
    line: int = field(default=0, compare=False)
    column: int = field(default=0, compare=False)

    @property
    def is_word(self) -> bool:
        """Whether it was said: not a separator or terminator."""
        return self.time is not None or any(c.isalnum() for c in self.text)


_TOKEN = re.compile(r"\[[^\]]*\]|\x15[^\x15]*\x15|[^\s\x15]+")


def read_wor(text: str, start: int, end: int, place: Callable[[int], tuple[int, int]]) -> tuple[WorWord, ...]:
    """The words of the %wor tier whose content is `text[start:end]`, in order.

    Codes in brackets are skipped, as is a bullet without times. `place` gives (line, column) of an offset.
    """
    words: list[WorWord] = []
    for token in _TOKEN.finditer(text, start, end):
        if token[0].startswith("\x15"):
            match = TIME_BULLET.fullmatch(token[0])
            if match and words and words[-1].time is None:
                words[-1] = replace(words[-1], time=WordTime(int(match["start"]), int(match["end"])))
        elif not token[0].startswith("["):
            words.append(WorWord(token[0], None, *place(token.start())))
    return tuple(words)


def format_wor(words: Iterable[tuple[str, WordTime | None]], terminator: str) -> str:
    """The %wor line, without its line end: each word, its time where it has one, and the terminator if there is one."""
    parts = [f"{text} \x15{time.start_ms}_{time.end_ms}\x15" if time else text for text, time in words]
    return "%wor:\t" + " ".join((*parts, terminator) if terminator else parts)
