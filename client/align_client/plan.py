"""Turns the utterances of a transcript into segments to align, and word times back into times of utterances.

Knows what chat, media and the SDK call things; neither reads audio nor talks to a server. Every utterance
that has words ends in exactly one segment, or is skipped for a reason that a user can act on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align_client.chat.document import UtteranceTimes
from align_client.chat.wor import Bullet, WordTime
from align_client.chat.words import ItemKind
from align_client.media.stream import Span
from align_client.sdk.types import Word, WordKind
from align_client.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from align_client.chat.document import Utterance

MAX_SEGMENT_MS = 15_000
MAX_CHARACTERS = 448  # of a group, a space after each word included
CONTEXT_MS = 200  # where bullets were 100 ms too tight this took the mean error of word starts from 27 to 16 ms
MAX_GAP_MS = 2_000  # nine of ten pauses in the conversations at hand are shorter; a longer one is cheaper not to send
MIN_MS_PER_CHARACTER = 25  # nobody speaks as fast
RECOVERED_MS = 500  # around where an utterance was found: nineteen of twenty begin within 300 ms of it
REACH_MS = 500  # of words into a neighbour that they were aligned with; hand-set bullets are rarely further off
OVERHANG_MS = 500  # of a bullet beyond the end of the recording: players and headers round

_KINDS = {kind: WordKind[kind.name] for kind in ItemKind}


@dataclass(frozen=True, slots=True)
class Part:
    """One utterance's share of a segment.

    `items` has, for each item of the utterance, the range (first, stop) of the segment's words that say it.
    `zone` is where its words may lie: its bullet and the context around it, or the gap it was found in.
    `bullet` is what it claims: from its first bullet to its last.
    """

    utterance: int
    items: tuple[tuple[int, int], ...]
    zone: Span
    bullet: Bullet | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A stretch of the recording, what is said in it, and by which utterances."""

    span: Span
    words: tuple[Word, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Segments sorted by start, and what is in none of them, by `Utterance.index`.

    `skipped` have words but cannot be aligned, each with the reason; `wordless` have nothing to align.
    """

    segments: tuple[Planned, ...]
    skipped: Mapping[int, str]
    wordless: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """What was changed about the time of one item of an utterance."""

    utterance: int
    item: int
    message: str


@dataclass(frozen=True, slots=True)
class Collected:
    """The times of a segment's utterances, by `Utterance.index`, ready for `Document.with_times`."""

    times: Mapping[int, UtteranceTimes]
    repairs: tuple[Repair, ...]


def plan(  # noqa: PLR0913  what is known, by name
    utterances: Sequence[Utterance],
    *,
    duration_ms: int | None,
    max_segment_ms: int = MAX_SEGMENT_MS,
    context_ms: int = CONTEXT_MS,
    longest_ms: int | None = None,
    recovered: Mapping[int, Bullet] | None = None,
) -> Plan:
    """Group utterances into segments.

    Utterances that follow one another in the file and in time share a segment up to `max_segment_ms` and
    `MAX_CHARACTERS`, unless more than `MAX_GAP_MS` lies between them. One that overlaps another is alone, and
    one that is longer is whole, up to `longest_ms`, the most that the server takes. Around a segment up to
    `context_ms` of audio is added, none of it under another utterance's bullet. Utterances without a bullet
    are aligned in the gap between their timed neighbours. `duration_ms` is the recording's length, None where
    it is not known: then check with `past_end` what was cut. `recovered` says, by `Utterance.index`, where some without
    a bullet were found; their words may lie up to `RECOVERED_MS` around.
    """
    return _Planner(utterances, duration_ms, max_segment_ms, context_ms, longest_ms, recovered or {}).plan()


def past_end(bullet: Bullet, recording_ms: int) -> str | None:
    """Why an utterance cannot be aligned in a recording of this length, or None where it can."""
    if bullet.start_ms < recording_ms and bullet.end_ms <= recording_ms + OVERHANG_MS:
        return None
    return (
        f"its bullet ends at {_seconds(bullet.end_ms)}, but the recording at {_seconds(recording_ms)};"
        " check that it is the right recording, and whole"
    )


def collect(segment: Planned, timings: Sequence[tuple[int, int] | None]) -> Collected:
    """The times of the segment's utterances, in ms of the recording.

    `timings` has one entry for each of `segment.words`: start and end in ms from the start of the span, or None.
    An item of several words lasts from the start of its first to the end of its last, and has no time if one of
    those has none. Times come out in order, without overlap and inside the part's zone; what that takes is
    listed as repairs: of two words that overlap the first ends where the second starts, and a word found wholly
    outside its utterance's zone has no time. An utterance with a bullet keeps it, so that aligning the result again
    changes nothing; its words may reach up to the context beyond. One without gets the stretch of its words.
    """
    if len(timings) != len(segment.words):
        raise ValueError(f"{len(timings)} times for the {len(segment.words)} words of a segment")
    repairs: list[Repair] = []
    found = [item for part in segment.parts for item in _found(segment, part, timings, repairs)]
    kept = _in_order(found, repairs)
    times = {}
    for part in segment.parts:
        mine = {item.index: item for item in kept if item.part is part}
        words = tuple(mine[i].time if i in mine else None for i in range(len(part.items)))
        said = [item.time for item in mine.values() if item.is_word]
        bullet = Bullet(said[0].start_ms, said[-1].end_ms) if said and part.bullet is None else None
        times[part.utterance] = UtteranceTimes(bullet, words)
    return Collected(times, tuple(sorted(repairs, key=lambda repair: (repair.utterance, repair.item))))


def widened(utterances: Sequence[Utterance], index: int, times: UtteranceTimes) -> UtteranceTimes:
    """The times of an utterance with its bullet as wide as its words, where these reach out of it.

    A bullet never becomes narrower, and takes nothing of what the bullets before and after it claim. A turn of several
    bullets keeps them.
    """
    utterance = utterances[index]
    own = utterance.bullet
    said = [
        word for item, word in zip(utterance.items, times.words, strict=True) if word and item.kind is ItemKind.WORD
    ]
    if own is None or own != utterance.span or not said:
        return times
    earlier, later = utterances[index - 1 :: -1] if index else (), utterances[index + 1 :]
    before = next((claim.end_ms for u in earlier if (claim := u.claim)), 0)
    after = next((claim.start_ms for u in later if (claim := u.claim)), said[-1].end_ms)
    start = max(min(own.start_ms, said[0].start_ms), min(own.start_ms, before))
    end = min(max(own.end_ms, said[-1].end_ms), max(own.end_ms, after))
    return times if (start, end) == (own.start_ms, own.end_ms) else replace(times, bullet=Bullet(start, end))


@dataclass(slots=True)
class _Found:
    """An item with the time that the engine gave it."""

    part: Part
    index: int
    is_word: bool
    start_ms: int
    end_ms: int

    @property
    def time(self) -> WordTime:
        return WordTime(self.start_ms, self.end_ms)

    def repair(self, message: str) -> Repair:
        return Repair(self.part.utterance, self.index, message)


def _found(
    segment: Planned, part: Part, timings: Sequence[tuple[int, int] | None], repairs: list[Repair]
) -> Iterable[_Found]:
    """The items of a part that have a time, cut to the part's zone."""
    for index, (first, stop) in enumerate(part.items):
        if first == stop:
            continue
        begin, finish = timings[first], timings[stop - 1]
        if begin is None or finish is None:
            continue
        is_word = segment.words[first].kind is WordKind.WORD
        item = _Found(part, index, is_word, segment.span.start_ms + begin[0], segment.span.start_ms + finish[1])
        start, end = max(item.start_ms, part.zone.start_ms), min(item.end_ms, part.zone.end_ms)
        if end <= start:
            if is_word:
                where = f"found at {_seconds(item.start_ms)}, outside of its utterance"
                repairs.append(item.repair(f"{where}: left without a time"))
            continue
        if is_word and (start, end) != (item.start_ms, item.end_ms):
            repairs.append(item.repair("reached out of its utterance: cut at the edge"))
        item.start_ms, item.end_ms = start, end
        yield item


def _in_order(found: Iterable[_Found], repairs: list[Repair]) -> list[_Found]:
    """The items with their overlaps taken away, and without those of which nothing is left."""
    kept: list[_Found] = []
    for item in found:
        before = kept[-1] if kept else None
        if before is not None and item.start_ms < before.end_ms:
            if item.start_ms > before.start_ms:
                before.end_ms = item.start_ms
                repairs.append(before.repair("overlapped the next word: ends where that one starts"))
            else:
                item.start_ms = before.end_ms
                if item.end_ms <= item.start_ms:
                    repairs.append(item.repair("found before the word it follows: left without a time"))
                    continue
                repairs.append(item.repair("started before the word it follows: starts where that one ends"))
        kept.append(item)
    return kept


@dataclass(slots=True)
class _Member:
    utterance: Utterance
    zone: Span
    bullet: Bullet | None  # its own or where it was found; None for an utterance that lies in a gap


class _Planner:
    def __init__(  # noqa: PLR0913, PLR0917  the arguments of `plan`
        self,
        utterances: Sequence[Utterance],
        duration_ms: int | None,
        max_segment_ms: int,
        context_ms: int,
        longest_ms: int | None,
        recovered: Mapping[int, Bullet],
    ) -> None:
        self._recovered = recovered
        self._utterances = utterances
        self._duration_ms = duration_ms
        self._context_ms = context_ms
        self._longest_ms = longest_ms
        self._max_segment_ms = max_segment_ms
        if longest_ms is not None:
            self._max_segment_ms = min(max_segment_ms, max(0, longest_ms - 2 * context_ms))
        claims = [claim for u in utterances if (claim := self._claim(u)) is not None and claim.start_ms < claim.end_ms]
        self._timeline = Timeline(claims)
        self._segments: list[Planned] = []
        self._skipped: dict[int, str] = {}
        self._wordless: list[int] = []
        self._group: list[_Member] = []  # the segment that is being put together; it ends with `_last`
        self._last: Bullet | None = None  # of the timed utterance before, if it can be a neighbour
        self._run: list[Utterance] = []  # those without a bullet since then

    def plan(self) -> Plan:
        for utterance in self._utterances:
            if utterance.problem is None and not _has_words(utterance):
                self._wordless.append(utterance.index)
            if utterance.problem is None and not utterance.items:
                continue
            obstacle = self._obstacle(utterance)
            if obstacle is not None:
                self._skip(utterance, obstacle)
                self._give_up_run("no time bullet, and none that can be used after it")
                self._close()
                self._last = None
            elif (claim := self._claim(utterance)) is None:
                self._run.append(utterance)
            else:
                self._add_timed(utterance, claim)
        self._give_up_run("no time bullet, and none after it")
        self._close()
        self._segments.sort(key=lambda segment: (segment.span.start_ms, segment.span.end_ms))
        return Plan(tuple(self._segments), self._skipped, tuple(self._wordless))

    def _claim(self, utterance: Utterance) -> Bullet | None:
        """Where an utterance says it is, or was found."""
        return utterance.claim or self._recovered.get(utterance.index)

    def _obstacle(self, utterance: Utterance) -> str | None:
        """Why an utterance can neither be aligned nor stand beside one that is."""
        bullet = utterance.claim
        if utterance.problem is not None:
            return utterance.problem.message
        if bullet is None:
            return None
        if bullet.end_ms <= bullet.start_ms:
            return f"its bullet goes from {bullet.start_ms} to {bullet.end_ms} ms; correct it, or take it away"
        if self._longest_ms is not None and bullet.end_ms - bullet.start_ms > self._longest_ms:
            length = _seconds(bullet.end_ms - bullet.start_ms)
            return f"its bullet spans {length}, more than the {_seconds(self._longest_ms)} a server takes; split it"
        return None if self._duration_ms is None else past_end(bullet, self._duration_ms)

    def _add_timed(self, utterance: Utterance, bullet: Bullet) -> None:
        context = self._context_ms if utterance.claim else max(self._context_ms, RECOVERED_MS)
        member = _Member(utterance, self._zone(bullet, context), bullet)
        run = self._placed_run(bullet)
        longest_gap = self._max_segment_ms if run else MAX_GAP_MS
        if self._group and self._fits([*self._group, *run, member], longest_gap):
            self._group += [*run, member]
        else:
            self._close()
            if run and run[0].zone.end_ms - run[0].zone.start_ms <= self._max_segment_ms:
                self._emit(run, run[0].zone)
            else:
                for lost in run:
                    self._skip(lost.utterance, "no time bullet, and the gap it must lie in is too long to search")
            self._group = [member]
        self._last = bullet

    def _placed_run(self, following: Bullet) -> list[_Member]:
        """The utterances without a bullet before this one, if they can lie between it and the last."""
        if not self._run:
            return []
        if self._last is None:
            self._give_up_run("no time bullet, and none that can be used before it")
            return []
        start, end = self._last.end_ms, following.start_ms
        if not self._timeline.is_free(start, end):
            self._give_up_run("no time bullet, and those around it overlap or run backwards")
            return []
        if end - start < MIN_MS_PER_CHARACTER * sum(map(_characters, self._run)) or end == start:
            self._give_up_run(f"no time bullet, and only {end - start} ms between those around it")
            return []
        run, self._run = self._run, []
        return [_Member(utterance, Span(start, end), None) for utterance in run]

    def _fits(self, members: Sequence[_Member], longest_gap_ms: int) -> bool:
        """Whether the last timed member can share a segment with those before it."""
        timed = [member.bullet for member in members if member.bullet is not None]
        first, before, last = timed[0], timed[-2], timed[-1]
        return (
            last.end_ms - first.start_ms <= self._max_segment_ms
            and last.start_ms - before.end_ms <= longest_gap_ms
            and self._timeline.is_free(before.end_ms, last.start_ms)
            and not self._timeline.overlaps(before)
            and not self._timeline.overlaps(last)
            and sum(_characters(member.utterance) for member in members) <= MAX_CHARACTERS
        )

    def _zone(self, bullet: Bullet, context: int) -> Span:
        if self._longest_ms is not None:
            context = min(context, (self._longest_ms - (bullet.end_ms - bullet.start_ms)) // 2)
        start, end = self._timeline.room(bullet)
        end = min(end, bullet.end_ms + context)
        if self._duration_ms is not None:
            end = min(end, self._duration_ms)
        return Span(max(start, bullet.start_ms - context), end)

    def _give_up_run(self, reason: str) -> None:
        for utterance in self._run:
            self._skip(utterance, reason)
        self._run = []

    def _skip(self, utterance: Utterance, reason: str) -> None:
        if utterance.problem is not None or _has_words(utterance):
            self._skipped[utterance.index] = reason

    def _close(self) -> None:
        group = self._group
        while group and not _has_words(group[0].utterance):
            del group[0]
        while group and not _has_words(group[-1].utterance):
            del group[-1]
        if group:
            self._emit(group, Span(group[0].zone.start_ms, group[-1].zone.end_ms))
        self._group = []

    def _emit(self, members: Sequence[_Member], span: Span) -> None:
        words: list[Word] = []
        parts: list[Part] = []
        for member in members:
            items = []
            for item in member.utterance.items:
                first = len(words)
                words += [_word(text, item.language, item.kind) for text in item.spoken or ("",)]
                items.append((first, len(words)))
            if _has_words(member.utterance):
                parts.append(Part(member.utterance.index, tuple(items), _reach(member, span), member.utterance.claim))
        if parts:
            self._segments.append(Planned(span, tuple(words), tuple(parts)))


@functools.lru_cache(maxsize=8192)
def _word(text: str, language: str, kind: ItemKind) -> Word:
    """One object for all places of a word: a long transcript says few words often."""
    return Word(text, language, _KINDS[kind])


def _reach(member: _Member, span: Span) -> Span:
    """Where a member's words may lie in its segment.

    The order of the words keeps utterances that were aligned together apart, so a bullet between two of them that
    was set early or late need not cut a word.
    """
    if member.bullet is None:
        return member.zone
    start = min(member.zone.start_ms, max(span.start_ms, member.bullet.start_ms - REACH_MS))
    return Span(start, max(member.zone.end_ms, min(span.end_ms, member.bullet.end_ms + REACH_MS)))


def _has_words(utterance: Utterance) -> bool:
    return any(item.kind is ItemKind.WORD for item in utterance.items)


def _characters(utterance: Utterance) -> int:
    return sum(len(word) + 1 for item in utterance.items for word in item.spoken)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f} s"
