"""A CHAT file as bytes that stay as they are, but for time bullets and %wor lines.

Knows lines, tiers, headers and where an edit goes; words.py knows what a main tier says. Nothing here reads or
writes files.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from align_client.chat import wor as wor_tier
from align_client.chat.marks import TIME_BULLET, printable
from align_client.chat.wor import Bullet, WordTime, WorWord
from align_client.chat.words import FileContext, Item, ItemKind, read_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class NotChatError(Exception):
    """The file as a whole is not CHAT, or not UTF-8; the message says what was found, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something the reader could not understand, at a line and column that count from 1, and what to do about it."""

    line: int
    column: int
    message: str


@dataclass(frozen=True, slots=True)
class Media:
    """What @Media says: the name as written without quotes, the kind ("audio", "video", "missing" or "") and flags."""

    name: str
    kind: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UtteranceTimes:
    """Times for one utterance: `words` has one entry for each of its items.

    `bullet` None leaves its bullet as it is, or away.
    """

    bullet: Bullet | None
    words: tuple[WordTime | None, ...]


@dataclass(frozen=True)
class Utterance:
    """One main tier and what hangs on it.

    `bullet` is the time bullet that ends it: no word follows it. `span` reaches over all its bullets, so it is what
    the words lie in; the two differ where a turn has several.
    `wor` is the existing %wor tier. Where `problem` is set the utterance was not understood: `items` then stop at
    the problem, and `Document.with_times` refuses to touch it. `is_overlap` says that it is marked as having begun
    while the one before it went on: by `+<`, or by `[<]` after some of its words.
    """

    index: int
    line: int
    speaker: str
    bullet: Bullet | None
    span: Bullet | None
    items: tuple[Item, ...]
    terminator: str
    wor: tuple[WorWord, ...] | None
    problem: Problem | None
    is_overlap: bool = False

    @property
    def claim(self) -> Bullet | None:
        """Where it says it is: from the first to the last of its bullets, most often the one that ends it."""
        return self.span or self.bullet

    @property
    def shown(self) -> tuple[int, ...]:
        """The indices of the items that %wor shows."""
        return tuple(i for i, item in enumerate(self.items) if item.kind is ItemKind.WORD)


@dataclass(frozen=True, slots=True)
class _Tier:
    """One header, main or dependent tier with its continuation lines, as offsets into the text.

    `end` is before the line end of its last line, `after` behind it.
    """

    start: int
    end: int
    after: int


@dataclass(slots=True)
class _Place:
    """Where the edits of one utterance go, as offsets into the text."""

    main: _Tier
    new_bullet: int
    digits: tuple[int, int] | None  # of the start and end time within the ending bullet
    last: _Tier  # the tier that a new %wor line follows
    wor: _Tier | None = None


_HEADER = re.compile(r"@(?P<name>[^:\t\r\n]+?)[ \t]*(?::\s*(?P<value>.*))?$", re.DOTALL)
_SPEAKER = re.compile(r"\*(?P<code>[^\s:*]+)[ \t]*:")
_DEPENDENT = re.compile(r"%(?P<code>[^\s:]+)[ \t]*:")
_LANGUAGE = re.compile(r"[a-z]{3}")
_CA_OPTION = re.compile(r"CA(?![a-z]).*", re.IGNORECASE)  # CA, CA-Unicode; not caps
_OVERLAP = re.compile(r"\s*(?:\[- [a-z]{3}\]\s*)?\+<|.*\[<[0-9]?\]", re.DOTALL)
_ANY_BULLET = re.compile(r"\x15[^\x15]*\x15")
_KNOWN_HEADERS = frozenset(
    {
        "UTF8",
        "Begin",
        "End",
        "Languages",
        "Participants",
        "ID",
        "Media",
        "Options",
        "PID",
        "Font",
        "Window",
        "Color words",
    }
)
_MEDIA_KINDS = frozenset({"audio", "video", "missing"})
_MEDIA_FLAGS = frozenset({"unlinked", "missing", "notrans"})
_BOM = "\ufeff"


class Document:
    """A parsed CHAT file that can be written back with times.

    `languages` are the ISO 639-3 codes of @Languages, `options` those of @Options. `problems` are those of all
    utterances and of lines that belong to nothing.
    """

    utterances: tuple[Utterance, ...]
    media: Media | None
    languages: tuple[str, ...]
    options: tuple[str, ...]
    is_ca: bool
    problems: tuple[Problem, ...]

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r" if "\r" in text and "\n" not in text else "\n"
        self._line_starts = [len(_BOM) if text.startswith(_BOM) else 0]
        self._line_starts += [match.end() for match in re.finditer(self._newline, text)]
        self.media = None
        self.languages = ()
        self.options = ()
        self._places: list[_Place] = []
        self._read()

    @classmethod
    def parse(cls, data: bytes) -> Document:
        """The document in `data`. Raises NotChatError where it is not CHAT at all or not UTF-8."""
        document = cls(_decode(data))
        if not document._is_chat:
            found = _first_line(document._text)
            raise NotChatError(
                f"not a CHAT file: line 1 {found}, and no line is a CHAT header such as @Begin or a speaker's turn"
                " such as *CHI:; give a .cha transcript"
            )
        return document

    def with_times(self, times: Mapping[int, UtteranceTimes], *, wor: bool = True) -> bytes:
        """The file with the bullets and %wor tiers of the utterances in `times`, which are keyed by `Utterance.index`.

        All other bytes are the file's own. No %wor line is written where `wor` is false, in a CA file, for an
        utterance without words, nor where no word has a time: an existing one is then kept. Raises ValueError for
        times that are not the utterance's: an unknown index, another number of words, an end before its start, or
        an utterance with a problem.
        """
        edits: list[tuple[int, int, str]] = []
        for index in sorted(times):
            utterance = self._checked(index, times[index])
            bullet, place = times[index].bullet, self._places[index]
            if bullet and place.digits:
                edits.append((*place.digits, f"{bullet.start_ms}_{bullet.end_ms}"))
            elif bullet:
                edits.append((place.new_bullet, place.new_bullet, f" {bullet}"))
            if wor and not self.is_ca and any(times[index].words[i] for i in utterance.shown):
                edits.append(self._wor_edit(utterance, times[index]))
        return _edited(self._text, edits).encode()

    def written(self, index: int) -> str:
        """What the main tier of an utterance says, as it is written: one line, without its speaker and bullets."""
        tier = self._places[index].main
        speaker = _SPEAKER.match(self._text, tier.start, tier.end)
        return printable(_ANY_BULLET.sub(" ", self._text[speaker.end() if speaker else tier.start : tier.end]))

    def _checked(self, index: int, given: UtteranceTimes) -> Utterance:
        if not 0 <= index < len(self.utterances):
            raise ValueError(f"there is no utterance {index}: the file has {len(self.utterances)}")
        utterance = self.utterances[index]
        if utterance.problem:
            raise ValueError(f"utterance {index} has a problem and is left alone: {utterance.problem.message}")
        if len(given.words) != len(utterance.items):
            raise ValueError(f"utterance {index} has {len(utterance.items)} items, not {len(given.words)}")
        for time in (given.bullet, *given.words):
            if time and not 0 <= time.start_ms <= time.end_ms:
                raise ValueError(f"utterance {index}: {time.start_ms} to {time.end_ms} ms is no stretch of time")
        return utterance

    def _wor_edit(self, utterance: Utterance, given: UtteranceTimes) -> tuple[int, int, str]:
        words = [(utterance.items[i].written, given.words[i]) for i in utterance.shown]
        line = wor_tier.format_wor(words, utterance.terminator)
        place = self._places[utterance.index]
        if place.wor:
            return (place.wor.start, place.wor.end, line)
        last = place.last
        line_end = self._text[last.end : last.after]
        if line_end:
            return (last.after, last.after, line + line_end)
        return (last.end, last.end, self._usual_line_end + line)

    @cached_property
    def _usual_line_end(self) -> str:
        crlf = self._text.count("\r\n")
        return "\r\n" if crlf * 2 > self._text.count("\n") else self._newline

    def _place_of(self, offset: int) -> tuple[int, int]:
        line = max(bisect_right(self._line_starts, offset), 1)
        return line, offset - self._line_starts[line - 1] + 1

    def _tiers(self) -> Iterator[_Tier]:
        """The tiers in order; a line that starts with a tab or blank goes with the tier before it."""
        text = self._text
        current: _Tier | None = None
        for i, start in enumerate(self._line_starts):
            after = self._line_starts[i + 1] if i + 1 < len(self._line_starts) else len(text)
            end = after
            if text.endswith(self._newline, start, after):
                end -= 1 + text.startswith("\r\n", after - 2)
            if not text[start:end].strip():
                continue
            if current and text[start] in "\t ":
                current = _Tier(current.start, end, after)
                continue
            if current:
                yield current
            current = _Tier(start, end, after)
        if current:
            yield current

    def _read(self) -> None:
        tiers = list(self._tiers())
        self._is_chat = False
        for tier in tiers:
            if self._text[tier.start] == "@":
                self._read_header(tier)
        self.is_ca = any(_CA_OPTION.fullmatch(option) for option in self.options)
        self._context = FileContext(self.languages, self.is_ca, self._place_of)
        utterances: list[Utterance] = []
        strays: list[Problem] = []
        for tier in tiers:
            match self._text[tier.start]:
                case "@":
                    continue
                case "*":
                    utterances.append(self._read_main(tier, len(utterances)))
                case "%" if utterances:
                    self._read_dependent(tier, utterances)
                case _:
                    stray = Problem(*self._place_of(tier.start), _about_stray_line(self._text[tier.start : tier.end]))
                    strays.append(stray)
                    if utterances and self._places[-1].main.after == tier.start and not utterances[-1].problem:
                        utterances[-1] = replace(utterances[-1], problem=stray)
        self.utterances = tuple(utterances)
        own = [u.problem for u in utterances if u.problem and u.problem not in strays]
        self.problems = tuple(sorted(own + strays, key=lambda problem: (problem.line, problem.column)))

    def _read_header(self, tier: _Tier) -> None:
        header = _HEADER.match(self._text, tier.start, tier.end)
        if header is None:
            return
        self._is_chat |= header["name"] in _KNOWN_HEADERS
        value = header["value"] or ""
        first_line = value.split(self._newline, 1)[0].strip()
        match header["name"]:
            case "Languages" if not self.languages:
                parts = re.split(r"[,\s]+", value)
                self.languages = tuple(dict.fromkeys(part for part in parts if _LANGUAGE.fullmatch(part)))
            case "Options" if not self.options:
                self.options = tuple(part.strip() for part in first_line.split(",") if part.strip())
            case "Media" if self.media is None:
                self.media = _read_media(" ".join(value.split()) if first_line.endswith(",") else first_line)

    def _read_main(self, tier: _Tier, index: int) -> Utterance:
        text = self._text
        speaker = _SPEAKER.match(text, tier.start, tier.end)
        line, column = self._place_of(tier.start)
        if speaker is None:
            self._places.append(_Place(tier, tier.end, None, tier))
            message = "this turn names no speaker; write it as *CHI: with a colon"
            return Utterance(index, line, "", None, None, (), "", None, Problem(line, column, message))
        self._is_chat = True
        reading = read_words(text, speaker.end(), tier.end, self._context)
        problem = Problem(*self._place_of(reading.trouble[0]), reading.trouble[1]) if reading.trouble else None
        matches = list(TIME_BULLET.finditer(text, speaker.end(), tier.end))
        bullets = [Bullet(int(match["start"]), int(match["end"])) for match in matches]
        for match, bullet in zip(matches, bullets, strict=True):
            if bullet.end_ms < bullet.start_ms and not problem:
                message = (
                    f"this bullet ends at {bullet.end_ms} ms, before it starts at {bullet.start_ms} ms; set it anew"
                )
                problem = Problem(*self._place_of(match.start()), message)
        is_ended = bool(matches) and matches[-1].start() >= reading.end
        digits = (matches[-1].start("start"), matches[-1].end("end")) if is_ended else None
        content_end = speaker.end() + len(text[speaker.end() : tier.end].rstrip())
        self._places.append(_Place(tier, content_end, digits, tier))
        return Utterance(
            index=index,
            line=line,
            speaker=speaker["code"],
            bullet=bullets[-1] if is_ended else None,
            span=Bullet(min(b.start_ms for b in bullets), max(b.end_ms for b in bullets)) if bullets else None,
            items=reading.items,
            terminator=reading.terminator,
            wor=None,
            problem=problem,
            is_overlap=_OVERLAP.match(text, speaker.end(), tier.end) is not None,
        )

    def _read_dependent(self, tier: _Tier, utterances: list[Utterance]) -> None:
        name = _DEPENDENT.match(self._text, tier.start, tier.end)
        place = self._places[-1]
        place.last = tier
        if name and name["code"] == "wor" and place.wor is None:
            place.wor = tier
            words = wor_tier.read_wor(self._text, name.end(), tier.end, self._place_of)
            utterances[-1] = replace(utterances[-1], wor=words)


def _decode(data: bytes) -> str:
    if not data.strip():
        raise NotChatError("not a CHAT file: it is empty")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:200].count(0) > len(data[:200]) // 4:
        raise NotChatError("this file is UTF-16, and CHAT is UTF-8; save it again as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = max(before.rfind(b"\n"), before.rfind(b"\r")) + 1
        line = before.count(b"\n") + 1 if b"\n" in data else before.count(b"\r") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        raise NotChatError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at line {line}, column {column} (byte {error.start});"
            " open it in the encoding that it was written in and save it again as UTF-8"
        ) from None


def _read_media(value: str) -> Media | None:
    """What @Media's value says: the kind and flags stand last, so a name may have commas; None without a name."""
    name, kind, flags = value, "", []
    while "," in name or (name.strip() in _MEDIA_KINDS and kind):
        rest, comma, word = name.rpartition(",")
        word = word.strip().lower()
        if not comma or word not in _MEDIA_KINDS | _MEDIA_FLAGS:
            break
        if word in _MEDIA_KINDS and (word != "missing" or not kind):
            kind = word
        if word in _MEDIA_FLAGS:
            flags.append(word)
        name = rest
    name = name.strip().strip('"').strip()
    return Media(name, kind, tuple(reversed(flags))) if name else None


def _about_stray_line(line: str) -> str:
    if line.startswith("%"):
        return "this dependent tier has no speaker's line before it; move it or delete it"
    return "this line starts with none of @ * % or a tab; start it with a tab where it goes on with the line before it"


def _first_line(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    shown = "".join(c if c.isprintable() else "?" for c in first[:40])
    return f"is “{shown}”"


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    done = 0
    for start, end, new in sorted(edits, key=lambda edit: edit[0]):  # stable: at one place, the bullet before the line
        parts += (text[done:start], new)
        done = end
    return "".join((*parts, text[done:]))
