"""Which words of a main tier go to the aligner, and which %wor shows: the table of docs/wor.md, row by row."""

from __future__ import annotations

import pytest

from align_client.chat import Document, Item, ItemKind, Utterance

WORD, SLOT, PAUSE = ItemKind.WORD, ItemKind.UNKNOWN_SOUND, ItemKind.PAUSE


def turn(content: str, languages: str = "eng", options: str = "") -> Utterance:
    headers = f"@UTF8\n@Begin\n@Languages:\t{languages}\n" + (f"@Options:\t{options}\n" if options else "")
    document = Document.parse(f"{headers}*CHI:\t{content}\n@End\n".encode())
    (utterance,) = document.utterances
    return utterance


def items(content: str, languages: str = "eng", options: str = "") -> tuple[Item, ...]:
    utterance = turn(content, languages, options)
    assert utterance.problem is None
    return utterance.items


def spoken(content: str, languages: str = "eng", options: str = "") -> list[str]:
    """The items as an aligner hears them: words joined, a slot as ?, a pause as _."""
    shown = {SLOT: "?", PAUSE: "_"}
    return [shown.get(item.kind, " ".join(item.spoken)) for item in items(content, languages, options)]


def written(content: str, languages: str = "eng", options: str = "") -> str:
    return " ".join(item.written for item in items(content, languages, options) if item.written)


@pytest.mark.parametrize(
    ("content", "said", "shown"),
    [
        ("I [/] I want it .", ["I", "I", "want", "it"], "I I want it"),
        ("<I want> [//] he wants .", ["I", "want", "he", "wants"], "I want he wants"),
        ("<<the big> [?] dog> [/] the dog .", ["the", "big", "dog", "the", "dog"], "the big dog the dog"),
        ("whenn [*] is it ?", ["whenn", "is", "it"], "whenn is it"),
        ("she said “I want” .", ["she", "said", "I", "want"], "she said I want"),
        ("non ‹il y› 〔bar〕 .", ["non", "il", "y", "bar"], "non il y bar"),  # noqa: RUF001  CHAT's brackets
        ("&-uh no .", ["uh", "no"], "uh no"),
        ("&-you_know no .", ["you know", "no"], "you_know no"),
        ("goed [: went] [*] there .", ["goed", "there"], "goed there"),
        ("(be)cause I do(n't) .", ["because", "I", "don't"], "because I don't"),
        ("a::n c^at \u02c8hi le~ha no:: .", ["an", "cat", "hi", "leha", "no"], "an cat hi leha no"),
        ("°soft° ⌈x⌉ ⌊2 two⌋2 ↑high p↓itch .", ["soft", "x", "two", "high", "pitch"], "soft x two high pitch"),
        ("∆fast∆ ☺smile☺ rub-b-b≠ber .", ["fast", "smile", "rub b bber"], "fast smile rub-b-bber"),
        ("↫s-s-s↫segment .", ["segment"], "segment"),
        ("we need \x02\x01to\x02\x02 do .", ["we", "need", "to", "do"], "we need to do"),
        ("ice+cream choo+choo's .", ["icecream", "choochoo's"], "icecream choochoo's"),
        ("a@l woof@o um@fp xxx@n .", ["a", "woof", "um", "?"], "a woof um"),
        ("goods$n cat@x$n .", ["goods", "cat"], "goods cat"),
        ("New_York U_S_A .", ["New York", "U S A"], "New_York U_S_A"),
        ("mm-hmm well-known th- .", ["mm hmm", "well known", "th"], "mm-hmm well-known th-"),
        ("42 at 3:30 .", ["forty two", "at", "three thirty"], "42 at 3:30"),
        ("&~gaga &+fr xxx yyy www &=laughs hi .", ["?"] * 6 + ["hi"], "hi"),
        ("&=head:yes <&=laughs> [>] &{n=BANG} hi .", ["?", "?", "?", "hi"], "hi"),
        ("&{l=X one &}l=X &{n=THUMP two &}n=THUMP .", ["one", "two"], "one two"),
        ("he said &*MOT:yeah and left .", ["he", "said", "?", "and", "left"], "he said and left"),
        ("0 [=! cries] .", ["?"], ""),
        ("0 [= did nothing] .", [], ""),
        ("0 .", [], ""),
        ("0she want 0to go .", ["want", "go"], "want go"),
        ("one (.) two (..) (...) (1.5) (2:3.4) (3.) .", ["one", "_", "two", "_", "_", "_", "_", "_"], "one two"),
        ("well , so ‡ it „ no ; yes : ok .", ["well", "so", "it", "no", "yes", "ok"], "well so it no yes ok"),
        ('+< +, ++ +^ +" hello . [+ bch] [+ a b]', ["hello"], "hello"),
        ("[^ free code] some <time> [>1] [<] [!!] [?] [e] .", ["some", "time"], "some time"),
        ("this [=! a+er b] is [= x] it [% c] so [# 1.0] .", ["this", "is", "it", "so"], "this is it so"),
        ("well [%act: nods] yes .", ["well", "yes"], "well yes"),
        ("hello 1:05 .", ["hello", "one oh five"], "hello 1:05"),
        ("no [x 3] .", ["no no no"], "no"),
        ("<oh no> [x 3] dear .", ["oh", "no", "?", "dear"], "oh no dear"),
        ("ה#ספר .", ["הספר"], "ה#ספר"),
    ],
)  # fmt: skip
def test_the_word_table(content: str, said: list[str], shown: str) -> None:
    assert (spoken(content), written(content)) == (said, shown)


@pytest.mark.parametrize(
    ("content", "languages", "expected"),
    [
        ("hola .", "spa, eng", ["spa"]),
        ("[- spa] hola .", "eng, spa", ["spa"]),
        ("hey hola@s .", "eng, spa", ["eng", "spa"]),
        ("[- spa] hola hey@s .", "eng, spa", ["spa", "eng"]),
        ("hola@s:spa .", "eng", ["spa"]),
        ("good@s:eng+zho hao3@s:zho&spa .", "eng", ["eng", "zho"]),
        ("um@s .", "eng", ["eng"]),
        ("woof@o@s:deu .", "eng", ["deu"]),
        ("&-euh@s:fra &=laughs (.) .", "eng", ["fra", "eng", "eng"]),
        ("hello .", "CA", [""]),
    ],
)
def test_each_item_has_its_own_language(content: str, languages: str, expected: list[str]) -> None:
    assert [item.language for item in items(content, languages)] == expected


@pytest.mark.parametrize(
    "terminator",
    [*".?!⇗↗→↘⇘≈≋∞", "+...", "+..?", "+!?", "+/.", "+/?", "+//.", "+//?", '+"/.', '+".', "+."],
)
def test_every_terminator_is_known(terminator: str) -> None:
    utterance = turn(f"I do {terminator}")
    assert (utterance.terminator, utterance.problem) == (terminator, None)
    assert [item.written for item in utterance.items] == ["I", "do"]


@pytest.mark.parametrize(
    ("content", "terminator"),
    [("oh! [+ x]", "!"), ("yes.", "."), ("I see", ""), ("a . b", ""), ("&*INV:oh_hm.", "."), ("why? \x151_2\x15", "?")],
)
def test_a_terminator_may_touch_its_word_or_be_missing(content: str, terminator: str) -> None:
    assert turn(content).terminator == terminator


def test_in_ca_a_word_in_parentheses_is_left_out_and_breath_is_a_sound() -> None:
    assert spoken("so (word) (.) ∙hhh yes (   ) ((coughs)) [...] n(o) .", options="CA") == [
        "so", "_", "?", "yes", "?", "?", "?", "no",
    ]  # fmt: skip
    assert spoken("so (word) hhh .") == ["so", "word", "hhh"]


def test_in_ca_what_is_marked_as_a_word_is_no_breath_and_a_mark_does_not_make_an_omission_a_word() -> None:
    assert spoken("so (palabra)@s:spa (word)$n °hhh° hhh@o &-hhh yes .", options="CA") == [
        "so", "?", "hhh", "hhh", "yes",
    ]  # fmt: skip


def test_greek_letters_that_are_marks_elsewhere_stay_in_greek() -> None:
    assert written("Ϋdra .", "ell") == "Ϋdra"
    assert written("ΫyawnΫ lauἩgh .", "eng") == "yawn laugh"


def test_items_know_their_line_and_column() -> None:
    first, second = items("hello &=laughs\n\tthere .")[0::2]
    assert (first.line, first.column) == (4, 7)
    assert (second.line, second.column) == (5, 2)


def test_only_words_have_text() -> None:
    for item in items("&=laughs (.) xxx hello &*INV:mhm ."):
        assert bool(item.spoken) == bool(item.written) == (item.kind is WORD)


@pytest.mark.parametrize(
    ("content", "column", "says"),
    [
        ("hello [= what .", 13, "never closed"),
        ("hello there] .", 18, "closes nothing"),
        ("hello \x15what\x15 there .", 13, "no times"),
        ("hello \x15100_200 .", 13, "never closed"),
        ("hello [foo] .", 13, "no code of CHAT"),
        ("hello / .", 13, "neither a word nor a mark"),
        ("see http://x.org .", 11, "web address"),
        ("hello a\x00b .", 13, "U+0000"),
        ("hello w\ufffdrd .", 13, "U+FFFD"),
        ("hello @s .", 13, "no letters"),
        ("hello . \x15500_100\x15", 15, "before it starts"),
    ],
)
def test_what_cannot_be_understood_is_a_problem_with_its_place(content: str, column: int, says: str) -> None:
    problem = turn(content).problem
    assert problem is not None
    assert (problem.line, problem.column) == (4, column)
    assert says in problem.message
