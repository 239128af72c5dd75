"""A word that was heard in a recording. Knows neither audio nor CHAT."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heard:
    """A word of a recording as it would be written, with what stops a sentence; milliseconds from the start."""

    text: str
    start_ms: int
    end_ms: int
    score: float = 0.0

    @property
    def middle_ms(self) -> float:
        """Half-way between start and end."""
        return (self.start_ms + self.end_ms) / 2

    @property
    def letters(self) -> str:
        """What two readings of one word have in common."""
        return letters(self.text)


def letters(text: str) -> str:
    """A word in small letters, without what is neither letter nor digit."""
    return "".join(c for c in text.casefold() if c.isalnum())
