"""A new CHAT file of what was heard in a recording: headers, one speaker, utterances with bullets and %wor.

Knows how CHAT writes words and ends utterances; how times are written is `document`'s.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from align_client.chat.document import Document, UtteranceTimes
from align_client.chat.speech import spoken_words
from align_client.chat.wor import Bullet, WordTime
from align_client.chat.words import ItemKind
from align_client.heard import Heard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SPEAKER: Final = "PAR"
CORPUS: Final = "corpus"  # its name, which @ID must have and nobody knows
PAUSE_MS: Final = 1_500  # between two words of one utterance, at most
LONGEST_MS: Final = 20_000  # an utterance that no stop ends is parted at its longest pause
UNKNOWN: Final = "und"  # ISO 639-3 for a language that is not known

_STOPS: Final = {".": ".", "?": "?", "!": "!", "。": ".", "．": ".", "？": "?", "！": "!", "؟": "?", "।": ".", "։": "."}  # noqa: RUF001  the stops of many scripts
_TRAILING: Final = "+..."
_AFTER: Final = re.compile(r"[\"'”’»›)\]}」』*_]+$")  # noqa: RUF001  what may follow a stop
_KEPT: Final = frozenset("'-_")  # inside a word, besides letters, marks and digits
_TITLES: Final = frozenset({"mr", "mrs", "ms", "dr", "st", "prof", "sr", "jr", "vs", "etc"})  # their dot is no stop
_FIRST_PERSON: Final = re.compile(r"I(?:'\w+)?")


@dataclass(slots=True)
class _Turn:
    """An utterance: words as CHAT writes them, with their times, and what ends it."""

    words: list[Heard] = field(default_factory=list)
    terminator: str = "."


def skeleton(heard: Iterable[Heard], *, media: str, kind: str, language: str, comment: str) -> bytes:
    """A CHAT file in UTF-8. `media` is the recording's name without its extension, `kind` audio or video.

    `language` is ISO 639-3, or empty where it is not known. Numbers are spelled out, as CHAT wants them; a word at the
    start of a sentence keeps its capital where it has one elsewhere too.
    """
    language = language or UNKNOWN
    turns = list(_turns(list(heard), language))
    head = [
        "@UTF8",
        "@Begin",
        f"@Languages:\t{language}",
        f"@Participants:\t{SPEAKER} Participant",
        f"@ID:\t{language}|{CORPUS}|{SPEAKER}|||||Participant|||",
        f"@Media:\t{_quoted(media)}, {kind}",
        f"@Comment:\t{comment}",
    ]
    lines = [f"*{SPEAKER}:\t{' '.join(word.text for word in turn.words)} {turn.terminator}" for turn in turns]
    document = Document.parse(("\n".join([*head, *lines, "@End"]) + "\n").encode())
    times: dict[int, UtteranceTimes] = {}
    for utterance, turn in zip(document.utterances, turns, strict=True):
        bullet = Bullet(turn.words[0].start_ms, turn.words[-1].end_ms)
        # One time for each word, as the reader of CHAT sees them; where it sees others, the bullet is still right.
        said = iter([WordTime(word.start_ms, word.end_ms) for word in turn.words])
        same = len(utterance.shown) == len(turn.words)
        words = [next(said) if same and item.kind is ItemKind.WORD else None for item in utterance.items]
        times[utterance.index] = UtteranceTimes(bullet, tuple(words))
    return document.with_times({i: given for i, given in times.items() if not document.utterances[i].problem})


def _turns(heard: Sequence[Heard], language: str) -> Iterator[_Turn]:
    """Utterances: up to a stop, or a pause."""
    usual = _written_in_capitals(heard)
    turn = _Turn()
    for word in heard:
        if turn.words and word.start_ms - turn.words[-1].end_ms > PAUSE_MS:
            yield from _parted(turn)
            turn = _Turn()
        text, stop = _without_stop(word.text)
        written = _written(text, language)
        if written and not turn.words and not _keeps_capital(written[0], usual):
            written[0] = written[0][:1].lower() + written[0][1:]
        turn.words += _shared(written, word)
        if stop and turn.words:
            turn.terminator = stop
            yield from _parted(turn)
            turn = _Turn()
    if turn.words:
        yield from _parted(turn)


def _parted(turn: _Turn) -> Iterator[_Turn]:
    """The utterance, in two or more where it is too long: at the longest pause that is not near its ends."""
    words = turn.words
    if words[-1].end_ms - words[0].start_ms <= LONGEST_MS or len(words) < 4:
        yield turn
        return
    inner = range(max(1, len(words) // 4), max(2, len(words) - len(words) // 4))
    at = max(inner, key=lambda i: words[i].start_ms - words[i - 1].end_ms)
    yield from _parted(_Turn(words[:at], "."))
    yield from _parted(_Turn(words[at:], turn.terminator))


def _without_stop(text: str) -> tuple[str, str]:
    """A word without what ends its sentence, and CHAT's terminator for that, "" where nothing does."""
    bare = _AFTER.sub("", text)
    if bare.endswith(("...", "…")):
        return bare.rstrip(".…"), _TRAILING
    if not bare or bare[-1] not in _STOPS:
        return text, ""
    word = bare.rstrip("".join(_STOPS))
    letters = "".join(c for c in word if c.isalnum()).casefold()
    is_initial = bare[-1] == "." and ((len(letters) == 1 and letters not in "aio") or "." in word or letters in _TITLES)
    if is_initial and not letters.isdigit():
        return word, ""
    return word, _STOPS[bare[-1]] if "?" not in bare else "?"


def _written(text: str, language: str) -> list[str]:
    """The words of CHAT that write a piece of text: letters, apostrophes and hyphens, and numbers in full."""
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("‘", "'").replace("—", " ").replace("–", "-")  # noqa: RUF001  marks to replace
    words: list[str] = []
    for part in text.split():
        pieces = spoken_words(part, language) if any(c.isdigit() for c in part) else (part,)
        for piece in pieces:
            kept = "".join(c for c in piece if c.isalnum() or c in _KEPT or unicodedata.category(c)[0] == "M")
            if any(c.isalnum() for c in kept):
                words.append(kept.strip("-_").removeprefix("'") if not kept.startswith("'") else kept.strip("-_"))
    return words


def _shared(written: Sequence[str], word: Heard) -> Iterator[Heard]:
    """The time of a piece of text, shared among its words by their letters."""
    total = sum(map(len, written))
    start, done = word.start_ms, 0
    for text in written:
        done += len(text)
        end = word.start_ms + round((word.end_ms - word.start_ms) * done / total)
        yield Heard(text, start, end)
        start = end


def _written_in_capitals(heard: Sequence[Heard]) -> set[str]:
    """Words that have a capital where no sentence begins: names, and nouns in German."""
    found: set[str] = set()
    is_first = True
    for word in heard:
        text, stop = _without_stop(word.text)
        bare = "".join(c for c in text if c.isalnum() or c in _KEPT)
        if not is_first and bare[:1].isupper():
            found.add(bare)
        is_first = bool(stop)
    return found


def _keeps_capital(word: str, usual: set[str]) -> bool:
    """Whether a word has its capital not only because a sentence begins; an abbreviation is all capitals."""
    is_abbreviation = (len(word) > 1 and word.isupper()) or word.casefold() in _TITLES
    return is_abbreviation or word in usual or _FIRST_PERSON.fullmatch(word) is not None


def _quoted(name: str) -> str:
    return f'"{name}"' if re.search(r"[,\s]", name) else name
