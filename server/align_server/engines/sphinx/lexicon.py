"""How a word of a transcript is said, in the phones of CMUdict.

Looks in a supplement, the dictionary of the pocketsphinx wheel, the word's parts, and asks the
grapheme-to-phoneme model for what is left. Knows nothing of audio, and nothing but English spelling.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.g2p import G2P
from align_server.engines.sphinx.model import model_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

Pronunciation: TypeAlias = tuple[str, ...]

SUPPLEMENT = Path(__file__).with_name("supplement.dict")
MAX_PRONUNCIATIONS = 6  # of a word; every one makes the search graph larger
MAX_LETTERS = 80  # no English word is longer, and the work per word stays bounded
MAX_ACRONYM = 5  # letters
MIN_COMPOUNDED = 3  # letters of each half of a compound
MAX_COMPOUNDS = 2
CACHED_WORDS = 16_384

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u02bb\u2032\u00b4`\uff07"), "'")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_PLAIN_LETTERS = {
    ord(k): v for k, v in {"ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th"}.items()
}
_TRANSLATE = _DASHES | _APOSTROPHES | _INVISIBLE | _PLAIN_LETTERS

_SEPARATORS = re.compile(r"[-_+./\s]+")
_SAYABLE = re.compile(r"[a-z'\-_+./\s]*[a-z][a-z'\-_+./\s]*")
_CLITIC = re.compile(r"(?P<stem>.*[a-z].*)(?P<clitic>n't|'(?:s|d|m|ll|re|ve))")
_LENGTHENED = re.compile(r"(.)\1{2,}")
_VOICELESS = frozenset({"P", "T", "K", "F", "TH"})
_SIBILANT = frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
_LETTER_A: tuple[Pronunciation, ...] = (("EY",),)


def dictionary_path() -> Path:
    """Where the pocketsphinx wheel keeps CMUdict. Raises EngineLoadError where the wheel is not installed."""
    return model_folder() / "cmudict-en-us.dict"


def read_dictionary(path: Path) -> dict[str, str]:
    """The entries of a file in CMUdict's format: word to its pronunciations, one a line, best first.

    `word(2)` is an alternative of `word`. Raises EngineLoadError where the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineLoadError(f"the dictionary {path} cannot be read ({error}): reinstall chatalign[server]") from error
    entries: dict[str, str] = {}
    for line in text.splitlines():
        word, _, phones = line.partition(" ")
        if word.endswith(")"):
            word = word[: word.rindex("(")]
            entries[word] = f"{entries[word]}\n{phones}" if word in entries else phones
        elif phones:
            entries[word] = phones
    return entries


def normalise(word: str) -> str:
    """The word as the dictionary spells it (small plain letters, straight apostrophes), or "" if it is not Latin."""
    folded = unicodedata.normalize("NFKC", word.translate(_TRANSLATE)).casefold().translate(_TRANSLATE)
    plain = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c)).strip()
    return plain if len(plain) <= MAX_LETTERS and _SAYABLE.fullmatch(plain) else ""


class Lexicon:
    """Pronunciations by word. Safe to use from several threads; what was asked once is remembered.

    `entries` maps a normalised word to its pronunciations, one a line; `g2p` guesses those of other words.
    """

    def __init__(self, entries: dict[str, str], g2p: G2P) -> None:
        self._entries = entries
        self._g2p = g2p
        self._remembered = lru_cache(maxsize=CACHED_WORDS)(self._pronounce)

    @classmethod
    def load(cls, dictionary: Path | None = None) -> Lexicon:
        """The lexicon of `dictionary`, by default pocketsphinx's, with the supplement's entries in place of its own.

        Raises EngineLoadError where a file is missing.
        """
        return cls(read_dictionary(dictionary or dictionary_path()) | read_dictionary(SUPPLEMENT), G2P.load())

    def pronunciations(self, word: str) -> tuple[Pronunciation, ...]:
        """How `word` may be said, best first; empty if it has no Latin letter, has digits, or is too long."""
        return self._remembered(word)

    def _pronounce(self, word: str) -> tuple[Pronunciation, ...]:
        normal = normalise(word)
        found = self._listed(normal) or self._listed(normal.strip("'"))
        if not found and word.isupper() and normal.isalpha() and len(normal) <= MAX_ACRONYM:
            found = _joined(map(self._letter, normal))[:1]  # "NHS"; a word in capitals is guessed below as well
            found += self._guessed(normal)
        found = found or self._said_in_parts(normal)
        return tuple(dict.fromkeys(found))[:MAX_PRONUNCIATIONS]

    def _listed(self, word: str) -> tuple[Pronunciation, ...]:
        lines = self._entries.get(word)
        return tuple(tuple(line.split()) for line in lines.split("\n")) if lines else ()

    def _said_in_parts(self, word: str) -> tuple[Pronunciation, ...]:
        parts = [part for part in _SEPARATORS.split(word) if part.strip("'")]
        if not parts:
            return ()
        return _joined(self._part(part, spelled=len(parts) > 1) for part in parts)

    def _part(self, part: str, *, spelled: bool) -> tuple[Pronunciation, ...]:
        """Pronunciations of a word without separators; where `spelled`, a lone "a" is the letter, not the article."""
        if spelled and len(part) == 1:
            return self._letter(part)
        return (
            self._listed(part)
            or self._listed(part.strip("'"))
            or self._dropped_g(part)
            or self._with_clitic(part)
            or self._lengthened(part)
            or self._guessed(part)
        )

    def _letter(self, letter: str) -> tuple[Pronunciation, ...]:
        return _LETTER_A if letter == "a" else self._listed(letter)

    def _dropped_g(self, part: str) -> tuple[Pronunciation, ...]:
        if not part.endswith("in'"):
            return ()
        full = self._listed(part[:-1] + "g")
        return tuple((*phones[:-1], "N") for phones in full if phones[-1] == "NG")

    def _with_clitic(self, part: str) -> tuple[Pronunciation, ...]:
        if part.endswith("s'"):  # a plural's possessive sounds like the plural
            return self._part(part[:-1], spelled=False)
        match = _CLITIC.fullmatch(part)
        if match is None:
            return ()
        stems = self._part(match["stem"], spelled=False)
        if match["clitic"] == "'s":
            return tuple((*stem, *_possessive(stem[-1])) for stem in stems)
        return _joined((stems, self._listed(match["clitic"])))

    def _lengthened(self, part: str) -> tuple[Pronunciation, ...]:
        """The listed word behind a spelling such as "sooo" or "mmmm"."""
        if not _LENGTHENED.search(part):
            return ()
        single = _LENGTHENED.sub(r"\1", part)
        shortened = self._listed(single) if len(single) > 1 else ()  # a letter's name is not a longer sound
        return self._listed(_LENGTHENED.sub(r"\1\1", part)) + shortened

    def _guessed(self, part: str) -> tuple[Pronunciation, ...]:
        letters = part.replace("'", "")
        return (*self._g2p.guesses(letters), *self._compound(letters))

    def _compound(self, letters: str) -> tuple[Pronunciation, ...]:
        """The two listed words that make up a word, at the split that leaves the longest shorter one."""
        middle = len(letters) / 2
        for at in sorted(range(MIN_COMPOUNDED, len(letters) - MIN_COMPOUNDED + 1), key=lambda at: abs(at - middle)):
            parts = self._listed(letters[:at]), self._listed(letters[at:])
            if all(parts):
                return _joined(parts)[:MAX_COMPOUNDS]
        return ()


def _possessive(last_phone: str) -> Pronunciation:
    if last_phone in _SIBILANT:
        return ("IH", "Z")
    return ("S",) if last_phone in _VOICELESS else ("Z",)


def _joined(parts: Iterable[tuple[Pronunciation, ...]]) -> tuple[Pronunciation, ...]:
    """Every way to say the parts one after the other, the best of each first; empty if one cannot be said."""
    joined: tuple[Pronunciation, ...] = ((),)
    for part in parts:
        joined = tuple(head + tail for head, tail in itertools.product(joined, part))[:MAX_PRONUNCIATIONS]
    return joined
