"""Tiers of intervals that do not overlap, as Praat and ELAN want them: for each speaker utterances, words and phones.

CHAT lets utterances of one speaker overlap, words reach beyond their utterance, and both have no length; here that
is put right, and each change noted. Times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align_client.report import Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from align_client.chat.wor import Bullet
    from align_client.export.transcript import Phone, SaidWord, TimedUtterance


@dataclass(slots=True)
class Interval:
    """A label from `start_ms` to `end_ms`, with its place in the transcript.

    `core` is the stretch that an overlap is not cut within, where that can be helped.
    """

    start_ms: int
    end_ms: int
    label: str
    line: int
    column: int
    core: tuple[int, int]
    phones: tuple[Phone, ...] = ()


def names(speaker: str) -> tuple[str, str, str]:
    """How the tiers of a speaker are called: those of utterances, of words and of phones."""
    return f"{speaker} - utterances", f"{speaker} - words", f"{speaker} - phones"


def as_timed(words: Iterable[SaidWord], missing: list[Note]) -> list[Interval]:
    """The words that have a time; a tier has no place for the others, which go to `missing`."""
    intervals: list[Interval] = []
    for word in words:
        if word.time:
            start, end = word.time.start_ms, word.time.end_ms
            intervals.append(Interval(start, end, word.text, word.line, word.column, (start, end), word.phones))
        else:
            missing.append(Note(word.line, word.column, word.text, "this word has no time, so no tier can hold it"))
    return intervals


def as_bulleted(utterances: Iterable[TimedUtterance]) -> list[Interval]:
    """The utterances at the times of their bullets."""
    spans = ((u, u.time.start_ms, u.time.end_ms) for u in utterances)
    return [Interval(start, end, u.text, u.line, 1, (start, end)) for u, start, end in spans]


def as_parents(utterances: Iterable[TimedUtterance], warnings: list[Note]) -> list[Interval]:
    """The utterances, widened to hold their words."""
    intervals: list[Interval] = []
    for u in utterances:
        times = [word.time for word in u.words if word.time]
        core = (u.time.start_ms, u.time.end_ms)
        if times:
            core = (min(time.start_ms for time in times), max(time.end_ms for time in times))
        if u.reach != u.time:
            why = f"words lie outside of this turn's {_span(u.time)} s, so here it lasts {_span(u.reach)} s"
            warnings.append(Note(u.line, 1, f"*{u.speaker}", why))
        intervals.append(Interval(u.reach.start_ms, u.reach.end_ms, u.text, u.line, 1, core))
    return intervals


def apart(intervals: Iterable[Interval], warnings: list[Note]) -> list[Interval]:
    """The intervals by their start, each at least 1 ms long and none over another.

    Where two overlap, both are cut in the middle of the overlap, or beside it where that spares their cores.
    """
    kept: list[Interval] = []
    for now in sorted(intervals, key=lambda interval: interval.start_ms):
        if now.end_ms <= now.start_ms:
            warnings.append(_note(now, f"{_quoted(now)} has no length; it is given 1 ms"))
            now.end_ms = now.start_ms + 1
        if kept and kept[-1].end_ms > now.start_ms:
            before = kept[-1]
            latest_start, first_end = max(before.start_ms, now.start_ms), min(before.end_ms, now.end_ms)
            cut = (latest_start + first_end) // 2
            if before.core[1] <= now.core[0]:
                cut = min(max(cut, before.core[1]), now.core[0])
            cut = max(cut, before.start_ms + 1)
            about = f"{_quoted(now)} overlaps {_quoted(before)} of line {before.line} by {first_end - latest_start} ms"
            rest = f", and the latter's last {before.end_ms - now.end_ms} ms left out" * (before.end_ms > now.end_ms)
            warnings.append(
                _note(now, f"{about}; a tier cannot hold that, so both are cut at {cut / 1000:.3f} s{rest}")
            )
            before.end_ms = now.start_ms = cut
            now.end_ms = max(now.end_ms, cut + 1)
        kept.append(now)
    return kept


def within(words: Sequence[Interval], parent: Interval, missing: list[Note], warnings: list[Note]) -> list[Interval]:
    """The words of an utterance inside the time that it has in its tier; what has no room there goes to `missing`."""
    kept: list[Interval] = []
    for word in words:
        span = (word.start_ms, word.end_ms)
        word.start_ms, word.end_ms = max(word.start_ms, parent.start_ms), min(word.end_ms, parent.end_ms)
        if word.end_ms < word.start_ms or (word.end_ms == word.start_ms and span[0] < span[1]):
            missing.append(
                _note(word, "its turn was cut, as it overlaps another of this speaker, and does not reach it")
            )
            continue
        if (word.start_ms, word.end_ms) != span:
            at = f"{word.start_ms / 1000:.3f} to {word.end_ms / 1000:.3f} s"
            warnings.append(_note(word, f"{_quoted(word)} lies outside of its turn, which was cut; here it is at {at}"))
        word.start_ms = min(word.start_ms, parent.end_ms - 1)
        word.core = (word.start_ms, word.end_ms)
        kept.append(word)
    inside = apart(kept, warnings)
    missing += [_note(word, "there is no room for it in its turn") for word in inside if word.end_ms > parent.end_ms]
    return [word for word in inside if word.end_ms <= parent.end_ms]


def as_phones(words: Iterable[Interval]) -> list[Interval]:
    """The phones of words that have their place in a tier: cut with them, where these were cut."""
    intervals: list[Interval] = []
    for word in words:
        for phone in word.phones:
            start, end = max(phone.start_ms, word.start_ms), min(phone.end_ms, word.end_ms)
            if start < end:
                intervals.append(Interval(start, end, phone.symbol, word.line, word.column, (start, end)))
    return intervals


def _note(interval: Interval, why: str) -> Note:
    return Note(interval.line, interval.column, interval.label, why)


def _quoted(interval: Interval) -> str:
    label = interval.label
    return f"“{label}”" if len(label) <= 40 else f"“{label[:39]}…”"


def _span(time: Bullet) -> str:
    return f"{time.start_ms / 1000:.3f} to {time.end_ms / 1000:.3f}"
