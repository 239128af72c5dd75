"""What the lexicon says of real and odd spellings, with the dictionary, supplement and model that are shipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.lexicon import (
    MAX_PRONUNCIATIONS,
    SUPPLEMENT,
    Lexicon,
    dictionary_path,
    read_dictionary,
)

if TYPE_CHECKING:
    from pathlib import Path

LEXICON = Lexicon.load()
PHONES = frozenset(phone for lines in read_dictionary(dictionary_path()).values() for phone in lines.split())


def said(word: str) -> list[str]:
    return [" ".join(phones) for phones in LEXICON.pronunciations(word)]


def test_alternatives_of_the_dictionary_come_in_its_order() -> None:
    assert said("tomato") == ["T AH M EY T OW", "T AH M AA T OW"]


@pytest.mark.parametrize(
    ("spelling", "plain"),
    [
        ("Cat", "cat"),
        ("don\u2019t", "don't"),
        ("CAF\u00c9", "cafe"),
        ("cafe\u0301", "cafe"),
        ("so\u00adfa", "sofa"),
        ("\ufb01sh", "fish"),
        ("\uff44\uff4f\uff47", "dog"),
        ("'hello'", "hello"),
        ("sheeplets'", "sheeplets"),
    ],
)
def test_spelling_that_is_not_heard_makes_no_difference(spelling: str, plain: str) -> None:
    assert said(plain)
    assert said(spelling) == said(plain)


@pytest.mark.parametrize(
    ("word", "one_way"),
    [
        ("hiya", "HH AY AH"),
        ("n't", "N T"),
        ("'s", "Z"),
        ("'ll", "AH L"),
        ("'cause", "K AH Z"),
        ("goin'", "G OW AH N"),
        ("sooo", "S OW"),
        ("mm-hmm", "M HH M"),
        ("icecream", "AY S K R IY M"),
        ("ice+cream", "AY S K R IY M"),
        ("New_York", "N UW Y AO R K"),
        ("U_S_A", "Y UW EH S EY"),
        ("U.S.A.", "Y UW EH S EY"),
        ("you know", "Y UW N OW"),
        ("NHS", "EH N EY CH EH S"),
        ("AAQ", "EY EY K Y UW"),
        ("bushbaby", "B UH SH B EY B IY"),
        ("peekaboo's", "P IY K AH B UW Z"),
        ("eek's", "IY K S"),
        ("horsie'll", "HH AO R S IY L"),
        ("Zo\u00eb", "Z OW IY"),
    ],
)
def test_a_word_of_conversation_is_said(word: str, one_way: str) -> None:
    assert one_way in said(word)


def test_the_dictionary_has_the_39_phones_of_the_acoustic_model() -> None:
    assert len(PHONES) == 39
    assert {"AA", "ZH"} <= PHONES


def test_a_single_letter_is_said_as_its_name_and_a_as_the_article_too() -> None:
    assert said("b") == ["B IY"]
    assert set(said("A")) == {"AH", "EY"}


def test_a_detached_clitic_is_not_spelled_out() -> None:
    assert "EH S" in read_dictionary(dictionary_path())["'s"]
    assert "EH S" not in said("'s")


@pytest.mark.parametrize(
    "word", ["", " ", "'", "-", "42", "3rd", "\u65e5\u672c", "\u0434\u0430", "\U0001f600", "a" * 500, "\n"]
)
def test_what_has_no_latin_word_in_it_cannot_be_said(word: str) -> None:
    assert LEXICON.pronunciations(word) == ()


def test_every_word_of_the_supplement_is_said_in_the_phones_of_the_dictionary() -> None:
    for word, lines in read_dictionary(SUPPLEMENT).items():
        assert said(word) == lines.split("\n")
        assert PHONES.issuperset(lines.split())


@given(st.text(max_size=60) | st.text("abcdefghijklmnopqrstuvwxyz'-_+.A\u00e9\u00df ", max_size=100))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_phones_or_nothing(text: str) -> None:
    pronunciations = LEXICON.pronunciations(text)
    assert len(pronunciations) <= MAX_PRONUNCIATIONS
    assert len(set(pronunciations)) == len(pronunciations)
    assert all(phones and PHONES.issuperset(phones) for phones in pronunciations)


def test_threads_get_the_answers_of_one_thread() -> None:
    words = ["sheeplet", "woggle", "bobbalooga", "cat", "mimsy", "borogoves"] * 20
    fresh = Lexicon.load()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.pronunciations, words)) == [LEXICON.pronunciations(word) for word in words]


def test_a_dictionary_of_ones_own_is_used(tmp_path: Path) -> None:
    path = tmp_path / "own.dict"
    path.write_text("woggle W AO G AH L\nwoggle(2) W AA G AH L\n\nstray\n", encoding="utf-8")
    assert Lexicon.load(path).pronunciations("Woggle") == (("W", "AO", "G", "AH", "L"), ("W", "AA", "G", "AH", "L"))


def test_a_dictionary_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"absent\.dict"):
        Lexicon.load(tmp_path / "absent.dict")
    (tmp_path / "latin.dict").write_bytes(b"caf\xe9 K AE F EY\n")
    with pytest.raises(EngineLoadError, match=r"latin\.dict"):
        Lexicon.load(tmp_path / "latin.dict")
