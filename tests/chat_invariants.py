"""What holds of every document, whole or broken: each check raises AssertionError and says of what.

Finds turns, bullets and %wor tiers in the bytes by itself, so that the reader is not its own judge.
"""

from __future__ import annotations

import itertools
import re
import sys
from typing import TYPE_CHECKING

from align_client.chat import Bullet, Document, ItemKind, NotChatError, UtteranceTimes, WordTime
from align_client.plan import collect, plan
from align_client.reuse import keeps_wor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from align_client.chat import Utterance
    from chat_grammar import Made

BULLET = re.compile(r'\x15(?:%\w+:"[^"\x15]*"_)?[0-9]{1,10}_[0-9]{1,10}-?\x15')
PLAIN_BULLET = re.compile(r" \x15[0-9]+_[0-9]+\x15")
WOR = re.compile(r"%wor[ \t]*:")
DIGITS = re.compile(r"[0-9]+_[0-9]+(?=-?\x15)")
LONGEST_MS = 30_000


def check_whole(made: Made, chance: Random) -> None:
    """A document of the grammar is understood throughout, as it was meant, and all that holds of any holds of it."""
    document = Document.parse(made.data)
    assert document.problems == ()
    assert document.languages == made.languages
    assert document.is_ca == made.is_ca
    media = document.media
    assert (media and (media.name, media.kind, media.flags)) == made.media
    assert len(document.utterances) == len(made.turns)
    for found, meant in zip(document.utterances, made.turns, strict=True):
        assert found.speaker == meant.speaker
        assert tuple(found.items[i].written for i in found.shown) == meant.words, found.line
        assert found.terminator == meant.terminator, found.line
        assert (found.bullet and (found.bullet.start_ms, found.bullet.end_ms)) == meant.bullet, found.line
    check_any(made.data, chance)


def check_any(data: bytes, chance: Random) -> None:
    """What holds of any bytes: they are refused with a reason, or keep all that alignment does not own."""
    try:
        document = Document.parse(data)
    except NotChatError as error:
        _check_message(str(error))
        return
    assert document.with_times({}) == data
    _check_places(document, data)
    times = _aligned(document, chance)
    for after in _check_times(document, data, times, wor=True):
        words = [times[after.index].words[i] for i in after.shown] if after.index in times else []
        if words and all(words) and after.bullet and not document.is_ca:
            assert keeps_wor(after, sys.maxsize), "a whole %wor tier would be computed anew"
    _check_times(document, data, _made_up(document, chance), wor=chance.random() < 0.8)


def _check_message(message: str) -> None:
    assert message.isprintable(), message


def _aligned(document: Document, chance: Random) -> dict[int, UtteranceTimes]:
    """The times that an engine which guesses would lead to."""
    utterances = document.utterances
    ends = [u.span.end_ms for u in utterances if u.span]
    duration = chance.choice((None, max(ends, default=0) + 1000, max(ends, default=0) // 2 + 1))
    recovered = {}
    for utterance in utterances:
        if utterance.span is None and chance.random() < 0.3:
            start = chance.randrange(min(5000, duration or 5000))
            end = start + chance.randint(1, 3000)
            recovered[utterance.index] = Bullet(start, end if duration is None else min(end, duration))
    longest = chance.choice((None, LONGEST_MS))
    made = plan(utterances, duration_ms=duration, longest_ms=longest, recovered=recovered)
    planned = [part.utterance for segment in made.segments for part in segment.parts]
    with_words = {u.index for u in utterances if u.problem or any(i.kind is ItemKind.WORD for i in u.items)}
    assert sorted([*planned, *made.skipped]) == sorted(with_words)
    assert all(reason.isprintable() for reason in made.skipped.values())
    times: dict[int, UtteranceTimes] = {}
    for segment in made.segments:
        span = segment.span
        assert 0 <= span.start_ms < span.end_ms, span
        assert duration is None or span.end_ms <= duration, span
        assert longest is None or span.end_ms - span.start_ms <= longest, span
        length = span.end_ms - span.start_ms
        timings = [_timing(at, len(segment.words), length, chance) for at in range(len(segment.words))]
        collected = collect(segment, timings)
        assert sorted(collected.times) == sorted(part.utterance for part in segment.parts)
        last = 0
        for part in segment.parts:
            for time in collected.times[part.utterance].words:
                if time is not None:
                    assert max(last, part.zone.start_ms) <= time.start_ms < time.end_ms <= part.zone.end_ms, time
                    last = time.end_ms
        times |= collected.times
    return times


def _timing(at: int, of: int, length_ms: int, chance: Random) -> tuple[int, int] | None:
    """When the word `at` of so many was said: about where it must be, or anywhere, or never."""
    which = chance.randrange(12)
    if which == 0:
        return None
    first = chance.randint(0, length_ms) if which == 1 else length_ms * at // of
    return first, min(length_ms, first + chance.randint(0, 2 * length_ms // of + 1))


def _made_up(document: Document, chance: Random) -> dict[int, UtteranceTimes]:
    """Times that are valid, for some of the utterances, and nothing more."""
    times = {}
    for utterance in document.utterances:
        if utterance.problem is None and chance.random() < 0.7:
            stretches = [_stretch(chance) for _ in range(len(utterance.items) + 1)]
            bullet = Bullet(*stretches[0]) if chance.random() < 0.7 else None
            words = tuple(WordTime(*stretch) if chance.random() < 0.8 else None for stretch in stretches[1:])
            times[utterance.index] = UtteranceTimes(bullet, words)
    return times


def _stretch(chance: Random) -> tuple[int, int]:
    start = chance.choice((0, chance.randint(0, 9_999_999)))
    return start, start + chance.choice((0, 1, chance.randint(0, 5000)))


def _check_times(
    document: Document, data: bytes, times: Mapping[int, UtteranceTimes], *, wor: bool
) -> tuple[Utterance, ...]:
    """Write the times and check what came of it; the utterances that were written."""
    written = document.with_times(times, wor=wor)
    again = Document.parse(written)
    assert again.with_times({}) == written
    assert again.with_times(times, wor=wor) == written, "a second run changes what the first wrote"
    assert len(again.utterances) == len(document.utterances)
    _check_bytes(data.decode(), written.decode(), times)
    for before, after in zip(document.utterances, again.utterances, strict=True):
        assert (before.problem is None) == (after.problem is None), before.line
        assert [(i.kind, i.spoken, i.written) for i in before.items] == [
            (i.kind, i.spoken, i.written) for i in after.items
        ], before.line
        given = times.get(before.index)
        if given is None:
            continue
        assert after.bullet == (given.bullet or before.bullet), before.line
        words = [given.words[i] for i in before.shown]
        if wor and not document.is_ca and any(words):
            shown = [(word.text, word.time) for word in after.wor or ()]
            expected = [(before.items[i].written, given.words[i]) for i in before.shown]
            assert shown == expected + [(before.terminator, None)] * bool(before.terminator), before.line
        else:
            assert after.wor == before.wor, before.line
    return again.utterances


def _check_bytes(before: str, after: str, times: Mapping[int, UtteranceTimes]) -> None:
    """Nothing but the bullets that end turns and the first %wor tier of each has changed, and that only where asked."""
    end = "\r" if "\r" in before and "\n" not in before else "\n"
    old, new = _turns(before, end), _turns(after, end)
    assert len(old) == len(new)
    for index, (mine, written) in enumerate(zip(old, new, strict=True), start=-1):
        if index not in times:
            is_last_without_end = index == len(old) - 2 and not mine.endswith(end)
            assert mine == written or (is_last_without_end and mine == written.rstrip("\r\n")), index
            continue
        kept, seen = _less_what_is_owned(mine, end)
        left, bullets = _less_what_is_owned(written, end)
        if index == len(old) - 2:  # a %wor line behind a last line that had no end gives it one
            kept, left = kept.rstrip("\r\n"), left.rstrip("\r\n")
        assert kept == left, index
        # All bullets but the last stand as they were; or all do, and one came behind them.
        assert bullets[:-1] in (seen[:-1], seen), index
        assert len(seen) <= len(bullets) <= len(seen) + 1, index
        if len(bullets) == len(seen) > 0:
            assert DIGITS.sub("", bullets[-1]) == DIGITS.sub("", seen[-1]), index


def _turns(text: str, end: str) -> list[str]:
    """The file in pieces: what stands before the first turn, then each turn with its tiers and all else behind it."""
    first = 1 if text.startswith("\ufeff") else 0
    starts = [at for at in _line_starts(text, end) if text.startswith("*", at or first)]
    edges = [0, *starts, len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(edges)]


def _line_starts(text: str, end: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer(end, text))]


def _less_what_is_owned(turn: str, end: str) -> tuple[str, list[str]]:
    """A turn less its first %wor tier and its time bullets; and those bullets."""
    main: list[str] = []
    others: list[str] = []
    blanks: list[str] = []  # since the last line of the %wor tier, which owns them if it goes on
    tier, has_wor = "main", False
    for number, line in enumerate(turn.split(end)):
        if number and line.strip() and line[0] not in "\t ":
            tier = "wor" if WOR.match(line) and not has_wor else "other"
            has_wor |= tier == "wor"
            others += blanks
            blanks = []
        if tier != "wor":
            (main if tier == "main" else others).append(line)
        elif line.strip():
            blanks = []
        else:
            blanks.append(line)
    said = end.join(main)
    return end.join((BULLET.sub("", PLAIN_BULLET.sub("", said)), *others, *blanks)), BULLET.findall(said)


def _check_places(document: Document, data: bytes) -> None:
    text = data.decode()
    end = "\r" if "\r" in text and "\n" not in text else "\n"
    lines = text.removeprefix("\ufeff").split(end)
    for problem in document.problems:
        assert 1 <= problem.line <= len(lines), problem
        assert 1 <= problem.column <= len(lines[problem.line - 1]), problem
        assert problem.message.isprintable(), problem
    for utterance in document.utterances:
        assert lines[utterance.line - 1].startswith("*"), utterance.line
        assert utterance.problem is None or utterance.problem in document.problems
        for item in utterance.items:
            assert lines[item.line - 1][item.column - 1].strip(), item
            assert bool(item.spoken) == bool(item.written) == (item.kind is ItemKind.WORD), item
            assert all(item.spoken), item
        for word in utterance.wor or ():
            assert lines[word.line - 1].startswith(word.text, word.column - 1), word
