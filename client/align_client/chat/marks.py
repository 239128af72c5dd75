"""The marks of CHAT's main tier: one pattern for its tokens, and the sets that say what a mark is.

Facts of the CHAT manual; knows nothing of what an aligner does with them.
"""

from __future__ import annotations

import re
from typing import Final

BULLET: Final = "\x15"

# A time bullet: plain, of the old form that names its media file, or with CLAN's skip mark before the end.
TIME_BULLET: Final = re.compile(r'\x15(?:%\w+:"[^"\x15]*"_)?(?P<start>[0-9]{1,10})_(?P<end>[0-9]{1,10})-?\x15')

_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufffe\uffff]")

# Inside a word, these say how it was said and are no part of its letters.
VOICE: Final = "°∆∇⁎▁▔☺♋⁇∬∮⤇⤆⁑∙∾≠↻↑↓⌈⌉⌊⌋\u0332\x01\x02\x03\x04"  # noqa: RUF001  CHAT's own characters
GREEK_VOICE: Final = "ἩΫ"  # letters of Greek, marks elsewhere
PROSODY: Final = "^~ˈˌ*"

_CA_END: Final = "⇗↗→↘⇘≈≋∞"
_BETWEEN: Final = ';„‡≡=“”"‹›〔〕'  # noqa: RUF001  neither said nor heard
_THOUSANDS: Final = ",(?=[0-9]{3}(?![0-9]))"

_CODE: Final = (
    r"\[(?P<code>"
    r"/|//|///|/-|/\?|<[0-9]?|>[0-9]?|<>|!|!!|\?|\*[^\[\]]*|e|\"|'"
    r"|x\s*(?P<times>[0-9]+)|-\s*(?P<language>[^\]\s]+)"
    r"|(?::{1,2}|=\?|=!|=|%|\^|\+|\#|\$|@)(?:[^\[\]]|\[[^\[\]]*\])*"
    r"|[a-z]+:[^\[\]]*"
    r")\s*\]"
)

# In this order: what stands earlier is tried first.
TOKEN: Final = re.compile(
    r"(?P<plain>[A-Za-z]+(?:'[A-Za-z]+)*(?=\s|\Z))"
    r"|(?P<bullet>\x15[^\x15]*\x15)"
    rf"|{_CODE}"
    r"|(?P<bracket>\[[^\[\]]*\])"
    r"|(?P<pause>\((?:\.{1,3}|(?:[0-9]+:)?[0-9]+(?:\.[0-9]*)?)\)|(?<!\S)\#+[0-9:._]*(?!\S))"
    r"|(?P<sound>\(\([^\x15]*?\)\)|\(\s*\)|&\{n=[^\s<>\[\]\x15{}]+\}|&=[^\s<>\[\]\x15]+)"
    r"|(?P<span>&[{}][ln]=[^\s<>\[\]\x15]+)"
    r"|(?P<interposed>&\*[^\s<>\[\]\x15]+)"
    rf"|(?P<terminator>\+(?:\.\.\.|\.\.\?|!\?|//?[.?]|\"/?[.?!]|\.)|[?!{_CA_END}]|\.+(?![^\s\x15<>\[\]]))"
    r"|(?P<linker>\+[\"^<,+≈≋])"
    rf"|(?P<separator>[={_BETWEEN}]|,(?![0-9]{{3}}(?![0-9]))|(?<!\w),|:(?!\w))"
    r"|(?P<open><)|(?P<close>>)"
    rf"|(?P<word>(?:[^\s\x15\[\]<>,?!={_BETWEEN}{_CA_END}+]|(?<=[0-9]){_THOUSANDS}|\+(?![./!?\"^<,+≈≋]))+)"
    r"|(?P<stray>\S)"
)


def printable(text: str) -> str:
    """The text on one line, each blank one space, without control characters such as CLAN's underlining."""
    return " ".join(_CONTROL.sub("", text).split())
