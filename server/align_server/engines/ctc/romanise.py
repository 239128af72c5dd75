"""Words of any script in Latin letters, as the training data of MMS was spelled: by uroman, in small letters.

Knows letters; knows neither tokens nor audio. uroman: Hermjakob et al. 2018, https://aclanthology.org/P18-4003/.
"""

from __future__ import annotations

import functools
import threading
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.ctc.text import APOSTROPHES

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

REMEMBERED: Final = 65_536  # words: a corpus says most of its words again
_LOCK: Final = threading.Lock()  # uroman keeps notes of its own while it works
_ONE_APOSTROPHE: Final = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))


class Romaniser:
    """Spells words in `letters`, of which all but the apostrophe are a to z.

    Safe to use from several threads. What it spelled is remembered, up to REMEMBERED words.
    """

    def __init__(self, letters: AbstractSet[str]) -> None:
        self._letters = letters
        self.spell = functools.lru_cache(REMEMBERED)(self._spell)

    def _spell(self, word: str, language: str) -> tuple[str, str]:
        """The letters of a word, and where there are none, why; `language` is ISO 639-3, or empty.

        A word with a digit has none: how it was read is not known. Numbers that are written in letters, as in Chinese,
        are read one by one. Whatever else is not among the letters is left out.
        """
        text = unicodedata.normalize("NFC", word).translate(_ONE_APOSTROPHE)
        with _LOCK:
            latin = _romanise(text, language or None).lower()
        if digits := [character for character in latin if character.isnumeric()]:
            return "", f"the model has no letters for {', '.join(dict.fromkeys(digits))}; write numbers as words"
        letters = "".join(character for character in latin if character in self._letters)
        return (letters, "") if letters.strip("'") else ("", "it has no letters")


def load() -> None:
    """Read uroman's tables, once in a process: 2 s, 50 MB. Otherwise the first word does."""
    with _LOCK:
        _uroman()


@functools.cache
def _uroman() -> Any:
    import uroman  # noqa: PLC0415  describing models does not need it

    return uroman.Uroman()


def _romanise(text: str, language: str | None) -> str:
    """Text in Latin letters: as uroman does it, save that it writes 三个 as 3ge, and not as sange."""
    tables = _uroman()
    latin: str = tables.romanize_string(text, lcode=language)
    if not any(character.isdigit() for character in latin):
        return latin
    from uroman import RomFormat  # noqa: PLC0415  see above

    edges = tables.romanize_string(text, lcode=language, rom_format=RomFormat.EDGES)
    lattice = tables.romanize_string(text, lcode=language, rom_format=RomFormat.LATTICE)
    single = [edge for edge in lattice if edge.end == edge.start + 1 and edge.txt.isascii() and edge.txt.isalpha()]
    readings = {edge.start: edge.txt for edge in reversed(single)}  # the first of several is uroman's choice
    return "".join(
        "".join(readings.get(i, text[i]) for i in range(edge.start, edge.end))
        if any(character.isdigit() for character in edge.txt)
        else edge.txt
        for edge in edges
    )
