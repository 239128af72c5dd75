"""A grammar of CHAT: whole documents, made from a `random.Random`, and what a reader must find in each.

`whole` makes documents in which everything is CHAT, whatever it is made of, and says what its turns say; `broken`
makes them and then damages them. Knows CHAT's manual and the table in docs/wor.md; does not know the reader.
"""
# ruff: noqa: RUF001  the characters are those of transcripts

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

LINE_ENDS = ("\n", "\n", "\r\n", "\r", "mixed")
GAPS = (" ", " ", " ", " ", " ", " ", " ", "  ", "\n\t", " \n\t", "\n\t\t")
SPEAKERS = ("CHI", "MOT", "FAT", "INV", "A_1", "PAR0", "Ö")
LANGUAGES = ("eng", "spa", "deu", "fra", "zho", "heb", "rus", "nld", "vie", "xyz")
PLAIN = (
    "the", "dog", "I", "don't", "goed", "mummy's", "a", "uh", "O'Brien", "été", "e\u0301te\u0301", "naïve", "Straße",
    "你好", "привет", "שלום", "नमस्ते", "ðə", "l'eau", "l’eau", "ni3", "hhh", "straβe",
)  # fmt: skip
PLAIN_IN_CA = tuple(word for word in PLAIN if word != "hhh")  # there it is breath

# Written in the transcript, and as %wor shows it.
MARKED = (
    ("&-uh", "uh"), ("&-you_know", "you_know"), ("(be)cause", "because"), ("goin(g)", "going"), ("a::n", "an"),
    ("c^at", "cat"), ("le~ha", "leha"), ("ˈwaˌter", "water"), ("°soft°", "soft"), ("⌈x⌉", "x"), ("⌊2yes⌋2", "yes"),
    ("↑high", "high"), ("∆fast∆", "fast"), ("ice+cream", "icecream"), ("a@l", "a"), ("woof@o", "woof"), ("um@fp", "um"),
    ("hola@s", "hola"), ("hola@s:spa", "hola"), ("hola@s:eng&spa", "hola"), ("hola@s:eng+spa", "hola"),
    ("bleu@s:fra", "bleu"), ("gumma@c", "gumma"), ("run$v", "run"), ("New_York", "New_York"), ("U_S_A", "U_S_A"),
    ("mm-hmm", "mm-hmm"), ("well-known", "well-known"), ("th-", "th-"), ("↫s-s-s↫segment", "segment"),
)  # fmt: skip
NUMBERS = ("0", "7", "42", "007", "1999", "3:30", "9:00", "9:05", "21st", "50%", "1,000", "12,345,678", "3.5",
           "5551234", "90210", "1000000", "²", "٣", "2nd", "11th", "1a", "b2b")  # fmt: skip
SOUNDS = ("&~gaga", "&+fr", "xxx", "yyy", "www", "&=laughs", "&=imit:dog", "0 [=! cries]", "&{n=BANG}", "((coughs))",
          "(   )", "xxx [=! sings]", "&+ʃ")  # fmt: skip
UNSAID = ("0is", "0subj", "(.)", "(..)", "(...)", "(1.5)", "(1:05.5)", "#", ",", ";", "„", "‡", "≡", ",",
          "[^ a remark]", "&{l=X", "&}l=X", "[% points]")  # fmt: skip
BESIDE_A_WORD = ("[*]", "[* m:+ed]", "[?]", "[!]", "[!!]", "[: went]", "[:: gone]", "[= the cat]", "[=? cap]",
                 "[=! whining]", "[=! x] [*]", "[>]", "[<]", "[>1]", "[<2]", "[/]", "[//]", "[///]", "[/-]", "[/?]",
                 "[x 3]", "[e]", '["]', "[# 1.5]", "[$ x]", "[: a [x] b]")  # fmt: skip
LINKERS = ('+"', "+^", "+<", "+,", "++", "+≈", "+≋")
TERMINATORS = (".", ".", ".", "?", "!", "+...", "+..?", "+!?", "+/.", "+/?", "+//.", "+//?", '+"/.', '+".', "+.")
CA_TERMINATORS = ("⇗", "↗", "→", "↘", "⇘", "≈", "≋", "∞")
CA_SOUNDS = ("[claps hands]", "∙hhh", "hhh", ".hh", "((door))")
POSTCODES = ("[+ bch]", "[+ trn]", "[+ exc] [+ gram]")
HEADERS_BEFORE = ("@PID:\t11312/c-1-1", "@Font:\tArial:12:0", "@Window:\t0_0_1_1_2_2_2_0_0_0", "@Color words:\tx y")
HEADERS = (
    "@Birth of CHI:\t01-JAN-2001", "@L1 of MOT:\tspa", "@Date:\t02-FEB-2003",
    "@Situation:\tat the table\n\tin the kitchen",
    "@Comment:\tnot a *CHI: turn, nor %wor: \x151_2\x15", "@Transcriber:\tø", "@Types:\tlong, toyplay, TD",
    "@New Episode",
    "@Bg:\tlunch", "@Eg:\tlunch", "@G", "@Time Duration:\t10:00-11:00", "@Unheard of:  x ", "@Comment:\t", "@Blank",
)  # fmt: skip
TIERS = (
    "%mor:\tn|dog v|run-PAST&3S .", "%gra:\t1|2|SUBJ 2|0|ROOT\n\t3|2|PUNCT", "%pho:\tðə dɔg",
    "%com:\tseen at \x153_4\x15",
    "%com:\tit goes\n\ton here ", "%act:\truns <bef> , waves", "%tim:\t1:02", "%xtra: [not a code", "%spa:\t$IMP:x",
    "%err:\t", "%eng:\tthe cat. ]", "%com :\twith a blank", "%glo:\t“x”",
)  # fmt: skip
NAMES = ("talk", "two words", '"quoted, name"', "tälk", "ab01.wav", "http://x.org/a.mp3", "a-b_c")
MEDIA = (
    ("audio", ()), ("video", ()), ("audio", ("unlinked",)), ("video", ("missing",)), ("audio", ("notrans",)),
    ("audio", ("unlinked", "notrans")), ("missing", ("missing",)),
)  # fmt: skip
BULLET_FORMS = ("\x15{}_{}\x15",) * 8 + ("\x15{}_{}-\x15", '\x15%snd:"a b"_{}_{}\x15', '\x15%mov:"c"_{}_{}\x15')
PICTURE = '\x15%pic:"cat.jpg"\x15'
LONGEST_TURN = 12
MOST_TURNS = 7
MOST_QUOTED = 3  # turns of one quotation
QUOTED, QUOTATION_FOLLOWS, QUOTATION_PRECEDES = '+"', '+"/.', '+".'
DAMAGE = (
    "[", "]", "<", ">", "\x15", "\ufffd", "\x00", "\ue000", "((", "[x 99999999]", "\x155_\x15", "\x159_1\x15", "*", "%",
    "@", "\t", "\r", "\n", "+", "&", "&*", "/", "://", "(", ")", "\u0332", "\u2028", "\x85", "0", "[- ",
    "@s:", "\u200b",
    "\n*CHI:\t", "\n%wor:\t", "\n%wor", "\njunk", "\n\n", "\n*", "\n\t", "\ufeff", "@Options:\tCA\n", "1,234",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """What a reader must find in a turn: its words as %wor shows them, its terminator and the bullet that ends it."""

    speaker: str
    words: tuple[str, ...]
    terminator: str
    bullet: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Made:
    """A document and what is in it. `media` is name, kind and flags."""

    data: bytes
    turns: tuple[Turn, ...]
    languages: tuple[str, ...]
    is_ca: bool
    media: tuple[str, str, tuple[str, ...]] | None


def whole(chance: Random) -> Made:
    """A document that is CHAT throughout."""
    return _Writer(chance).document()


def broken(chance: Random) -> bytes:
    """A document that was CHAT: with a few bytes or lines lost, doubled, moved or put in."""
    data = whole(chance).data
    for _ in range(chance.randint(1, 6)):
        data = chance.choice(_DAMAGES)(data, chance)
    return data


def long_turn(chance: Random) -> bytes:
    """A document of one turn that says a few things thousands of times."""
    parts = [
        chance.choice((*DAMAGE, *SOUNDS, *UNSAID, *PLAIN, *NUMBERS, *LINKERS)) for _ in range(chance.randint(1, 3))
    ]
    between = chance.choice(("", " ", ",", "\n\t"))
    return f"@Begin\n*CHI:\t{between.join(parts * chance.randint(500, 4000))}\n".encode()


class _Writer:
    """Writes one document, each line end one line feed until it is done; keeps what the turn at hand says."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._pick = chance.choice
        self._languages = tuple(chance.sample(LANGUAGES, chance.choice((0, 1, 1, 1, 2, 3))))
        self._is_ca = self._once_in(5)
        self._clock = 0
        self._words: list[str] = []
        self._bullet: tuple[int, int] | None = None
        self._terminator = ""

    def document(self) -> Made:
        chance = self._chance
        speakers = chance.sample(SPEAKERS, chance.randint(1, 4))
        lines = self._headers(speakers)
        media = self._media(lines)
        turns: list[Turn] = []
        for _ in range(chance.randint(0, MOST_TURNS)):
            if self._once_in(6):
                lines.append(self._pick(HEADERS))
            speaker = self._pick(speakers)
            turns += self._quotation(speaker, lines) if self._once_in(8) else [self._turn(speaker, lines)]
        if not self._once_in(5):
            lines.append("@End")
        text = "\n".join(lines) + self._pick(("\n", "\n", "\n", "", "\n\n"))
        text = ("\ufeff" if self._once_in(8) else "") + self._with_line_ends(text)
        return Made(text.encode(), tuple(turns), self._languages, self._is_ca, media)

    def _once_in(self, times: int) -> bool:
        return self._chance.randrange(times) == 0

    def _with_line_ends(self, text: str) -> str:
        end = self._pick(LINE_ENDS)
        if end == "mixed":  # a file that holds a line feed has no other line end
            parts = text.split("\n")
            return "".join(part + self._pick(("\n", "\r\n")) for part in parts[:-1]) + parts[-1]
        return text.replace("\n", end)

    def _headers(self, speakers: Sequence[str]) -> list[str]:
        lines = [] if self._once_in(6) else ["@UTF8"]
        lines += [header for header in HEADERS_BEFORE if self._once_in(5)]
        lines.append("@Begin")
        if self._languages:
            lines.append("@Languages:\t" + self._pick((", ", ",", ",\n\t", " , ")).join(self._languages))
        lines.append("@Participants:\t" + ", ".join(f"{code} Target_Child" for code in speakers))
        if self._is_ca:
            lines.append("@Options:\t" + self._pick(("CA", "CA, heritage", "multi, CA", "CA-Unicode", "\tCA")))
        elif self._once_in(4):
            lines.append("@Options:\t" + self._pick(("multi", "heritage", "bullets, IPA", "caps", "dummy")))
        lines += [f"@ID:\teng|corpus|{code}|2;06.||||Target_Child|||" for code in speakers]
        return lines

    def _media(self, lines: list[str]) -> tuple[str, str, tuple[str, ...]] | None:
        if self._once_in(3):
            return None
        name, (kind, flags) = self._pick(NAMES), self._pick(MEDIA)
        lines.append("@Media:\t" + ", ".join(dict.fromkeys((name, kind, *flags))))
        return name.strip('"'), kind, flags

    def _quotation(self, speaker: str, lines: list[str]) -> list[Turn]:
        """A turn that says who said it, and turns of the same speaker with what was said; or these, and who said it.

        Or both: what stands between is told from both its ends.
        """
        form = self._pick(("follows", "precedes", "between"))
        turns = [] if form == "precedes" else [self._turn(speaker, lines, terminator=QUOTATION_FOLLOWS)]
        turns += [self._turn(speaker, lines, linker=QUOTED) for _ in range(self._chance.randint(1, MOST_QUOTED))]
        return turns if form == "follows" else [*turns, self._turn(speaker, lines, terminator=QUOTATION_PRECEDES)]

    def _turn(self, speaker: str, lines: list[str], *, linker: str = "", terminator: str = "") -> Turn:
        """One turn with its tiers; where no linker or terminator is named, it may have any or none."""
        self._words, self._bullet, self._terminator = [], None, ""
        self._clock += self._chance.choice((0, 0, 120, 700, 3000))
        text = f"*{speaker}:" + self._pick(("\t", "\t", "\t", " ", "\t\t"))
        before = [f"[- {self._pick(LANGUAGES)}]"] if self._once_in(6) else []
        linker = linker or (self._pick(LINKERS) if self._once_in(6) else "")
        before += [linker] if linker else []
        parts = before + self._said(self._chance.randint(0, LONGEST_TURN), 0)
        parts += self._ending(terminator)
        lines.append(text + "".join(part + self._pick(GAPS) for part in parts).rstrip() + self._pick(("", "", "", " ")))
        self._tiers(lines)
        return Turn(speaker, tuple(self._words), self._terminator, self._bullet)

    def _said(self, length: int, depth: int) -> list[str]:
        """What is said, each part with no blank at its ends."""
        makers = (
            self._plain,
            self._plain,
            self._plain,
            self._marked,
            self._marked,
            self._number,
            self._sound,
            self._unsaid,
        )
        parts: list[str] = []
        while length > 0:
            length -= 1
            which = self._chance.randrange(16)
            if which == 0 and depth < 3:
                parts.append(self._group(depth))
            elif which == 1 and depth == 0:
                parts.append(self._pick((self._time_bullet, lambda: PICTURE))())
            elif which == 2:
                parts.append(self._plain() + " " + self._pick(BESIDE_A_WORD))
            elif which == 3 and depth == 0 and self._once_in(2):
                parts.append(f"&*{self._pick(SPEAKERS[:4])}:mhm")
                self._terminator = ""
            elif which == 4 and self._is_ca and depth == 0:  # a group may be repeated, and is then a slot at its end
                parts.append(self._in_ca())
            else:
                parts.append(self._pick(makers)())
        return parts

    def _group(self, depth: int) -> str:
        inner = " ".join([self._plain(), *self._said(self._chance.randint(0, 3), depth + 1)])
        form = self._pick(("<{}>", "<{}>", "<{}>", "“{}”", "‹{}›", "〔{}〕", '"{}"'))
        codes = " ".join(self._chance.sample(BESIDE_A_WORD, self._chance.randint(1, 2)))
        return form.format(inner) + (f" {codes}" if form.startswith("<") else "")

    def _word(self, written: str, shown: str) -> str:
        self._words.append(shown)
        self._bullet = None
        self._terminator = ""
        return written

    def _plain(self) -> str:
        word = self._pick(PLAIN_IN_CA if self._is_ca else PLAIN)
        return self._word(word, word)

    def _marked(self) -> str:
        return self._word(*self._pick(MARKED))

    def _number(self) -> str:
        number = self._pick(NUMBERS[1:])
        return self._word(number, number)

    def _sound(self) -> str:
        self._terminator = ""
        return self._pick(SOUNDS)

    def _unsaid(self) -> str:
        found = self._pick(UNSAID)
        if found.startswith("(") or found == "#":
            self._terminator = ""
        return found

    def _in_ca(self) -> str:
        if self._once_in(3):
            self._terminator = self._pick(CA_TERMINATORS)
            return self._terminator
        if self._once_in(2):
            return self._pick(("(word)", "(°word°)"))
        self._terminator = ""
        return self._pick(CA_SOUNDS)

    def _time_bullet(self) -> str:
        start = self._clock + self._chance.choice((0, 0, 10, 250))
        self._clock = start + self._chance.choice((0, 1, 90, 900, 4000, 20_000))
        self._bullet = (start, self._clock)
        return self._pick(BULLET_FORMS).format(start, self._clock)

    def _ending(self, terminator: str) -> list[str]:
        parts: list[str] = []
        if terminator or not self._once_in(8):
            any_of = (*TERMINATORS, *CA_TERMINATORS) if self._is_ca else TERMINATORS
            self._terminator = terminator or self._pick(any_of)
            parts.append(self._terminator)
        parts += [self._pick(POSTCODES)] if self._once_in(6) else []
        parts += [self._time_bullet()] if self._once_in(2) else []
        parts += [self._pick(POSTCODES)] if self._once_in(20) else []
        return parts

    def _tiers(self, lines: list[str]) -> None:
        chance = self._chance
        tiers = [self._pick(TIERS) for _ in range(chance.choice((0, 0, 1, 2, 3)))]
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2) if self._once_in(4) else (0, 1))):
            tiers.insert(chance.randint(0, len(tiers)), self._wor())
        lines += tiers

    def _wor(self) -> str:
        """An old %wor tier: of this turn, of a part of it, or of another."""
        words = list(self._words)
        if self._once_in(4):
            words = words[: len(words) // 2]
        if self._once_in(4):
            words.append(self._pick((",", "wrong", "[- spa]", "„", "\x15\x15")))
        is_timed = not self._once_in(6)
        at, parts = self._bullet[0] if self._bullet else 0, []
        for word in words:
            parts.append(f"{word} \x15{at}_{at + 50}\x15" if is_timed and not self._once_in(12) else word)
            at += self._chance.choice((50, 60, 300))
        return f"%wor:\t{self._pick(GAPS[6:]).join((*parts, self._terminator)).rstrip()}"


def _lose_bytes(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.randint(1, 6) :]


def _cut_short(data: bytes, chance: Random) -> bytes:
    return data[: chance.randint(0, len(data))]


def _put_in(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(DAMAGE).encode() + data[at:]


def _put_between(data: bytes, chance: Random) -> bytes:
    """As `_put_in`, but where a blank is, so that what is put in stands alone more often."""
    parts = data.split(b" ")
    at = chance.randrange(len(parts))
    return b" ".join((*parts[:at], chance.choice(DAMAGE).encode(), *parts[at:]))


def _change_byte(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    return (
        data[:at] + bytes((chance.choice((0, 9, 10, 13, 21, 32, 64, 91, 255, chance.randrange(256))),)) + data[at + 1 :]
    )


def _swap_bytes(data: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + 1 : at + 2] + data[at : at + 1] + data[at + 2 :]


def _move_line(data: bytes, chance: Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    line = lines.pop(chance.randrange(len(lines)))
    lines.insert(chance.randint(0, len(lines)), line)
    return b"".join(lines)


def _lose_line(data: bytes, chance: Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def _double_line(data: bytes, chance: Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    return b"".join((*lines[:at], lines[at], *lines[at:]))


_DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _lose_bytes, _cut_short, _put_in, _put_in, _put_between, _put_between, _change_byte, _swap_bytes, _move_line,
    _lose_line, _double_line,
)  # fmt: skip
