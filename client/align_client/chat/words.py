"""Which words of a main tier are aligned, how each is said, and what %wor shows.

Knows the marks of CHAT; does not know files, tiers or times. The table it follows is in docs/wor.md.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align_client.chat import marks
from align_client.chat.speech import spoken_words

if TYPE_CHECKING:
    from collections.abc import Callable


class ItemKind(enum.Enum):
    """What an item of a main tier is to an aligner."""

    WORD = "word"
    UNKNOWN_SOUND = "unknown sound"  # babble, laughter, untranscribed speech: takes time, has no text
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Item:
    """One word, slot or pause of an utterance.

    `spoken` is what goes to the aligner, one or more words, empty unless `kind` is WORD. `written` is the word as
    %wor shows it, empty unless it is shown. `language` is ISO 639-3, empty where the file names none.
    `line` and `column` count from 1, the column in characters.
    """

    kind: ItemKind
    spoken: tuple[str, ...]
    written: str
    language: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a main tier says: its items, the terminator that closes it ("" if none) and what was not understood.

    `end` is the offset of the last word. `trouble` is (offset, message); the items are then those before it.
    """

    items: tuple[Item, ...]
    terminator: str
    end: int
    trouble: tuple[int, str] | None = None


UNTRANSCRIBED = frozenset({"xxx", "yyy", "www", "xx", "yy"})
MOST_REPEATS = 20  # of `[x N]`; more is a slip of the pen

_VOICE = str.maketrans("", "", marks.VOICE)
_PROSODY = str.maketrans("", "", marks.PROSODY + "+()")
_OVERLAP_INDEX = re.compile(r"(?<=[⌈⌉⌊⌋])[0-9]")
_SEGMENT_REPEAT = re.compile(r"↫[^↫]*↫")
_LENGTHENING = re.compile(r":(?![0-9])|(?<![0-9]):")
_OMITTED_IN_CA = re.compile(r"\([^()]*\)[.:]*(?:[@$].*)?")
_BREATH = re.compile(r"\.?h{2,}", re.IGNORECASE)
_LANGUAGE_CODE = re.compile(r"[a-z]{3}")


class _Trouble(Exception):  # noqa: N818  it never leaves this module
    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class FileContext:
    """What a main tier needs to know of its file: its languages, the first its default, and whether it is CA."""

    languages: tuple[str, ...]
    is_ca: bool
    place: Callable[[int], tuple[int, int]]  # (line, column) of an offset into the text


def read_words(text: str, start: int, end: int, context: FileContext) -> Reading:
    """Read the main tier that is `text[start:end]`, without its speaker code.

    Does not raise: what cannot be understood is the reading's `trouble`.
    """
    reader = _Reader(context, start)
    try:
        for token in marks.TOKEN.finditer(text, start, end):
            take = reader.takers.get(token.lastgroup or "")
            if take:
                take(token, token.start())
    except _Trouble as trouble:
        return Reading(tuple(reader.items), "", reader.end, (trouble.offset, str(trouble)))
    return Reading(tuple(reader.items), reader.terminator, reader.end)


@functools.lru_cache(maxsize=8192)
def _as_written(text: str) -> tuple[str]:
    """One object for all places of a word: a long transcript says few words often."""
    return (text,)


class _Reader:
    """Takes the tokens of one main tier in order and keeps the items they make.

    A token goes to the method of its group in `marks.TOKEN`; separators, linkers and span marks have none.
    """

    def __init__(self, context: FileContext, start: int) -> None:
        self.items: list[Item] = []
        self.terminator = ""
        self.end = start
        self._context = context
        self._language = context.languages[0] if context.languages else ""
        self._groups: list[int] = []  # where each open `<` began, as an index of items
        self._scope = 0  # where the word or group began that a code in brackets would speak of
        # A `0` may prove to be an event: how many items stood before the last one, and where it is.
        self._zero = (-1, 0)
        self.takers = {
            "plain": self._take_plain,
            "word": self._take_word,
            "terminator": self._take_terminator,
            "sound": self._take_sound,
            "interposed": self._take_interposed,
            "bracket": self._take_bracket,
            "pause": self._take_pause,
            "open": self._take_open,
            "close": self._take_close,
            "bullet": self._take_bullet,
            "stray": self._take_stray,
            "code": self._take_code,
        }

    def _take_plain(self, token: re.Match[str], at: int) -> None:
        """An ordinary word of ASCII letters: most words, so the way to it is short."""
        text = token[0]
        if text in UNTRANSCRIBED or (self._context.is_ca and _BREATH.fullmatch(text)):
            self._add(ItemKind.UNKNOWN_SOUND, at)
        else:
            spoken = _as_written(text)
            self._add(ItemKind.WORD, at, self._language, spoken[0], spoken)

    def _take_word(self, token: re.Match[str], at: int) -> None:
        raw = token["word"]
        if "://" in raw:
            raise _Trouble(at, f"{_shown(raw)} is a web address, not words; write what was said")
        terminator = "." if raw.endswith(".") else ""
        body = raw.rstrip(".:").lstrip(".") if terminator else raw.lstrip(".")
        self._scope = len(self.items)
        if body == "0":
            self._zero = (len(self.items), at)
        elif body.startswith("&") and not body.startswith("&-"):
            self._add(ItemKind.UNKNOWN_SOUND, at)
        elif not _is_omitted(body, is_ca=self._context.is_ca):
            self._spoken(body.removeprefix("&-"), raw, at)
        if terminator:
            self.terminator = terminator

    def _spoken(self, body: str, raw: str, at: int) -> None:
        language = self._language
        text, mark, suffix = _without_voice(body, language).partition("@")
        if mark:
            language = self._language_of(suffix)
        text = _LENGTHENING.sub("", text.partition("$")[0]).translate(_PROSODY)
        damaged = next((c for c in text if _is_damaged(c)), None)
        if damaged:
            raise _Trouble(at, f"{_shown(raw)} holds the damaged character U+{ord(damaged):04X}; write the word anew")
        is_marked = bool(mark) or raw.startswith("&-")  # as a word: hhh@o, &-hhh
        is_breath = self._context.is_ca and not is_marked and _BREATH.fullmatch(text)
        if text in UNTRANSCRIBED or is_breath:
            self._add(ItemKind.UNKNOWN_SOUND, at)
        elif any(c.isalnum() for c in text):
            self._add(ItemKind.WORD, at, language, text, spoken_words(text, language))
        elif mark:
            raise _Trouble(at, f"{_shown(raw)} has no letters to say; correct the word")
        elif not _is_only_marks(raw):
            raise _Trouble(at, _about_stray(raw))

    def _take_terminator(self, token: re.Match[str], _at: int) -> None:
        self.terminator = token[0]

    def _take_sound(self, _token: re.Match[str], at: int) -> None:
        self._add(ItemKind.UNKNOWN_SOUND, at)

    def _take_interposed(self, token: re.Match[str], at: int) -> None:
        """`&*INV:mhm`, said by another within this turn: a sound here, and no word of this speaker."""
        self._add(ItemKind.UNKNOWN_SOUND, at)
        self.terminator = token[0][-1] if token[0][-1] in ".?!" else ""

    def _take_bracket(self, token: re.Match[str], at: int) -> None:
        """`[...]` and other remarks that CA transcribers bracket; elsewhere a code that CHAT does not have."""
        if not self._context.is_ca:
            raise _Trouble(at, f"{_shown(token[0])} is no code of CHAT; correct it")
        self._add(ItemKind.UNKNOWN_SOUND, at)

    def _take_pause(self, _token: re.Match[str], at: int) -> None:
        self._add(ItemKind.PAUSE, at)

    def _take_open(self, _token: re.Match[str], _at: int) -> None:
        self._groups.append(len(self.items))

    def _take_close(self, _token: re.Match[str], _at: int) -> None:
        self._scope = self._groups.pop() if self._groups else len(self.items)

    def _take_bullet(self, token: re.Match[str], at: int) -> None:
        is_picture = token[0].startswith("\x15%") and token[0].endswith('"\x15')
        if not is_picture and marks.TIME_BULLET.fullmatch(token[0]) is None:
            raise _Trouble(at, f"this bullet holds no times but {_shown(token[0].strip(marks.BULLET))}; set it anew")

    def _take_stray(self, token: re.Match[str], at: int) -> None:
        raise _Trouble(at, _about_stray(token[0]))

    def _take_code(self, token: re.Match[str], at: int) -> None:
        if token["language"] is not None:
            self._language = _first_code(token["language"]) or self._language
        elif token["times"] is not None:
            self._repeat(int(token["times"][:3]), at)
        elif token["code"].startswith("=!") and self._zero[0] == len(self.items):
            self._add(ItemKind.UNKNOWN_SOUND, self._zero[1])

    def _add(
        self, kind: ItemKind, at: int, language: str = "", written: str = "", spoken: tuple[str, ...] = ()
    ) -> None:
        self._scope = len(self.items)
        self.items.append(Item(kind, spoken, written, language or self._language, *self._context.place(at)))
        self.terminator = ""
        if kind is ItemKind.WORD:
            self.end = at

    def _repeat(self, times: int, at: int) -> None:
        """`[x N]`: the words before it were said N times and written once."""
        if times < 2 or self._scope >= len(self.items):
            return
        item = self.items[self._scope]
        if self._scope == len(self.items) - 1 and item.kind is ItemKind.WORD and times <= MOST_REPEATS:
            self.items[-1] = replace(item, spoken=item.spoken * times)
        else:
            self._add(ItemKind.UNKNOWN_SOUND, at)

    def _language_of(self, suffix: str) -> str:
        """The language that `@s`, `@s:spa`, `@s:eng+spa` or `@s:eng&spa` gives; others leave it as it is."""
        form, _, codes = suffix.rpartition("@")[2].partition(":")
        if form != "s":
            return self._language
        if codes:
            named = [code for code in re.split(r"[+&]", codes.lower()) if _LANGUAGE_CODE.match(code)]
            return self._language if self._language in named or not named else named[0][:3]
        others = [code for code in self._context.languages if code != self._language]
        return others[0] if others else self._language


def _without_voice(body: str, language: str) -> str:
    text = _SEGMENT_REPEAT.sub("", _OVERLAP_INDEX.sub("", body)).translate(_VOICE)
    if language not in {"ell", "grc"}:
        for mark in marks.GREEK_VOICE:
            text = text.replace(mark, "")
    return text


def _is_omitted(body: str, *, is_ca: bool) -> bool:
    """Whether the word was never spoken: `0word`, and in CA a word that stands in parentheses as a whole."""
    if body.startswith("0") and len(body) > 1 and not (body[1].isdigit() or body[1] in ".:,"):
        return True
    return is_ca and _OMITTED_IN_CA.fullmatch(_without_voice(body, "")) is not None


def _is_damaged(c: str) -> bool:
    return c == "\ufffd" or unicodedata.category(c) in {"Cc", "Cn", "Co", "Cs"}


def _first_code(codes: str) -> str:
    match = _LANGUAGE_CODE.match(codes.lower())
    return match[0] if match else ""


def _is_only_marks(raw: str) -> bool:
    return all(c in marks.VOICE + marks.GREEK_VOICE + marks.PROSODY + "↫#_-–—'’‘`´.:()0123456789" for c in raw)  # noqa: RUF001


def _about_stray(found: str) -> str:
    if found == "[":
        return "this [ is never closed; close it"
    if found == "]":
        return "this ] closes nothing; delete it or open its ["
    if found == marks.BULLET:
        return "this bullet is never closed; delete it or set the time anew"
    return f"{_shown(found)} is neither a word nor a mark of CHAT; delete it"


def _shown(found: str) -> str:
    text = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in found)
    return f"“{text[:40]}”"
