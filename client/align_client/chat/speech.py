"""How a written word is said: what an aligner is given for `New_York`, `mm-hmm`, `42` or `3:30`.

Knows scripts, hyphens and numbers in many languages; does not know CHAT's marks, which words.py has taken off.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# ISO 639-3 (and the macrolanguage codes that corpora use) to the keys of num2words.
NUMBER_LANGUAGES = {
    "amh": "am", "ara": "ar", "arb": "ar", "aze": "az", "bel": "be", "ben": "bn", "cat": "ca", "ces": "cs",
    "cym": "cy", "dan": "da", "deu": "de", "eng": "en", "epo": "eo", "spa": "es", "fas": "fa",
    "pes": "fa", "fin": "fi", "fra": "fr", "heb": "he", "hun": "hu", "ind": "id", "isl": "is", "ita": "it",
    "jpn": "ja", "kan": "kn", "kor": "ko", "kaz": "kz", "lit": "lt", "lav": "lv", "nld": "nl", "nor": "no",
    "nob": "no", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "slk": "sk", "slv": "sl", "srp": "sr",
    "swe": "sv", "tel": "te", "tet": "tet", "tgk": "tg", "tha": "th", "tur": "tr", "ukr": "uk", "vie": "vi",
}  # fmt: skip

# A digit that ends a syllable in these is its tone, as in hao3.
TONE_LANGUAGES = frozenset({"zho", "cmn", "yue", "nan", "hak", "wuu"})

YEARS = range(1100, 2100)  # a bare four-digit number in this range is read as a year
LONGEST_CARDINAL = 6  # digits; a longer run without separators is a telephone number or a code

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "#": ""})  # noqa: RUF001  marks to replace; # joins a clitic
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_NUMBER = re.compile(
    r"(?P<clock>\d{1,2}:[0-5]\d(?!\d))"
    r"|(?P<ordinal>\d+(?=(?:st|nd|rd|th)\b))(?:st|nd|rd|th)"
    r"|(?P<grouped>\d{1,3}(?:,\d{3})+(?!\d))"
    r"|(?P<decimal>\d+[.,]\d+)"
    r"|(?P<whole>\d+)",
    re.IGNORECASE,
)
_BETWEEN_WORDS = re.compile(r"[_\-/.:,&%+‐‑–—]+")  # noqa: RUF001  dashes that stand in for a hyphen


def spoken_words(written: str, language: str) -> tuple[str, ...]:
    """The words that say `written`, in order: `New_York` is two, `42` is "forty", "two" in English.

    `written` has no CHAT marks but `_`; `language` is ISO 639-3. A number in a language whose numbers are not
    known stays as written, for the aligner to judge. Never empty: what has no letters is returned as it is.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", written)).translate(_APOSTROPHES)
    if not any(c.isdigit() for c in text) or (language in TONE_LANGUAGES and not text[0].isdigit()):
        return _split(text) or (text,)
    words: list[str] = []
    end = 0
    for match in _NUMBER.finditer(text):
        words += _split(text[end : match.start()])
        words += _say_number(match, language)
        end = match.end()
    rest = text[end:]
    words += _split(rest)
    if rest.startswith("%") and language == "eng":
        words.append("percent")
    return tuple(words) or (text,)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in _BETWEEN_WORDS.split(text) if any(c.isalnum() for c in part))


def _say_number(match: re.Match[str], language: str) -> tuple[str, ...]:
    kind, digits = match.lastgroup or "whole", match[match.lastgroup or 0]
    if kind == "clock":
        return _say_clock(digits, language)
    if kind == "grouped":
        return _say(digits.replace(",", ""), "cardinal", language)
    if kind == "decimal":
        return _say(digits.replace(",", "."), "cardinal", language)
    if kind == "ordinal":
        return _say(digits, "ordinal", language)
    if len(digits) > LONGEST_CARDINAL or (len(digits) > 1 and int(digits[0]) == 0):
        return tuple(word for digit in digits for word in _say(digit, "cardinal", language))
    is_year = language in {"eng", "deu"} and len(digits) == 4 and int(digits) in YEARS
    return _say(digits, "year" if is_year else "cardinal", language)


def _say_clock(digits: str, language: str) -> tuple[str, ...]:
    hours, minutes = digits.split(":")
    if language == "eng" and minutes == "00":
        return (*_say(hours, "cardinal", language), "o'clock")
    if int(minutes[0]) == 0:
        zero = ("oh",) if language == "eng" else ()
        rest = () if minutes == "00" else (*zero, *_say(minutes[1], "cardinal", language))
        return (*_say(hours, "cardinal", language), *rest)
    return (*_say(hours, "cardinal", language), *_say(minutes, "cardinal", language))


@functools.lru_cache(maxsize=4096)
def _say(digits: str, how: str, language: str) -> tuple[str, ...]:
    key = NUMBER_LANGUAGES.get(language)
    if key is None:
        return (digits,)
    from num2words import num2words  # noqa: PLC0415  few transcripts have digits; the import takes 60 ms

    try:
        value = float(digits) if "." in digits else int(digits)
        said = str(num2words(value, lang=key, to=how))
    except (NotImplementedError, ArithmeticError, ValueError, TypeError, LookupError):
        return (digits,)  # its tables do not reach this number in this language
    return tuple(re.split(r"[\s,\-]+", said.strip())) or (digits,)
