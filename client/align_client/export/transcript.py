"""What every format is written from: the utterances of a transcript that have a time, each with its words.

Reads by way of align_client.chat alone, and knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align_client.chat.document import Document
from align_client.chat.marks import printable
from align_client.chat.wor import Bullet, WorWord
from align_client.report import Note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from align_client.chat.document import Utterance
    from align_client.chat.wor import WordTime
    from align_client.files import Job


@dataclass(frozen=True, slots=True)
class Phone:
    """One sound of a word, in milliseconds from the start of the recording."""

    symbol: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class SaidWord(WorWord):
    """A word of %wor. Its phones, if it has any, follow one another from its start to its end."""

    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True, slots=True)
class TimedUtterance:
    """An utterance that has a time.

    `number` counts all utterances of the file from 1. `time` reaches over its bullets. `text` is the main tier as it
    is written, without bullets. `words` are those of %wor, without separators and terminator. `said` is what %wor
    shows, or would show: each of the words and the terminator; where there is no word, `text`.
    """

    number: int
    line: int
    speaker: str
    time: Bullet
    text: str
    said: tuple[str, ...]
    words: tuple[SaidWord, ...]

    @property
    def reach(self) -> Bullet:
        """Its time, widened where words lie outside: they may reach into a neighbour's bullet."""
        return _around(self.time, *(word.time for word in self.words if word.time))


@dataclass(frozen=True, slots=True)
class Transcript:
    """One file as it is exported. `left_out` tells of the utterances without a time.

    With `phones` those of its words were asked for; `phoneless` tells of words that have none.
    """

    source: Path
    target: Path
    document: Document
    utterances: tuple[TimedUtterance, ...]
    left_out: tuple[Note, ...]
    warnings: tuple[Note, ...]
    phones: bool = False
    phoneless: tuple[Note, ...] = ()

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who says something, in order of appearance."""
        return tuple(dict.fromkeys(utterance.speaker for utterance in self.utterances))


@dataclass(slots=True)
class Written:
    """A file in another format, what it could not hold (`missing`), and what had to be changed for it."""

    data: bytes
    missing: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)


def read(job: Job) -> Transcript:
    """The transcript `job.source`. Raises NotChatError or OSError."""
    document = Document.parse(job.source.read_bytes())
    utterances: list[TimedUtterance] = []
    left_out: list[Note] = []
    of_utterances = {utterance.problem for utterance in document.utterances}
    warnings = [Note(p.line, p.column, "", p.message) for p in document.problems if p not in of_utterances]
    for utterance in document.utterances:
        words = tuple(_words(utterance, warnings))
        text = document.written(utterance.index)
        time, why = _time(utterance, words)
        problem = utterance.problem
        if time is not None and text:
            said = _said(utterance, words) or (text,)
            number = utterance.index + 1
            utterances.append(TimedUtterance(number, utterance.line, utterance.speaker, time, text, said, words))
            if problem:
                warnings.append(Note(problem.line, problem.column, f"*{utterance.speaker}", problem.message))
        else:
            place = problem or utterance
            column = problem.column if problem else 1
            left_out.append(Note(place.line, column, f"*{utterance.speaker}", why or "nothing is written in this turn"))
    return Transcript(
        source=job.source,
        target=job.target,
        document=document,
        utterances=tuple(utterances),
        left_out=tuple(left_out),
        warnings=tuple(sorted(warnings, key=lambda note: (note.line, note.column))),
    )


def _words(utterance: Utterance, warnings: list[Note]) -> Iterator[SaidWord]:
    """The words of its %wor tier; a time that ends before it starts is none."""
    for word in utterance.wor or ():
        text = printable(word.text)
        if not text or not word.is_word:
            continue
        time = word.time
        if time and time.end_ms < time.start_ms:
            why = f"the time of “{text}” ends at {time.end_ms} ms, before it starts at {time.start_ms} ms; set it anew"
            warnings.append(Note(word.line, word.column, text, why))
            time = None
        yield SaidWord(text, time, word.line, word.column)


def _time(utterance: Utterance, words: tuple[SaidWord, ...]) -> tuple[Bullet | None, str]:
    """When it is said, from its bullets or else from its words; or why that is not known."""
    if utterance.span and utterance.span.end_ms >= utterance.span.start_ms and utterance.speaker:
        return utterance.span, ""
    if utterance.problem and (utterance.span or not utterance.speaker):
        return None, utterance.problem.message
    times = [Bullet(word.time.start_ms, word.time.end_ms) for word in words if word.time]
    if times:
        return _around(*times), ""
    return None, "this turn has no time bullet and is left out; `align-client align` finds one where it can"


def _said(utterance: Utterance, words: tuple[SaidWord, ...]) -> tuple[str, ...]:
    shown = [word.text for word in words] or [printable(utterance.items[i].written) for i in utterance.shown]
    return (*shown, utterance.terminator) if shown and utterance.terminator else tuple(shown)


def _around(*times: Bullet | WordTime) -> Bullet:
    return Bullet(min(time.start_ms for time in times), max(time.end_ms for time in times))
