"""Windows over a recording, and joining what was heard in them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.heard import Heard
from align_client.media.stream import Span
from align_client.recognition import OVERLAP_MS, WINDOW_MS, commonest, join, windows
from align_client.sdk.types import Transcript, WordTiming

OVERLAP = Span(25_000, 30_000)


def said(text: str, start_ms: int, each_ms: int = 500) -> list[Heard]:
    return [Heard(word, start_ms + i * each_ms, start_ms + (i + 1) * each_ms) for i, word in enumerate(text.split())]


def texts(words: list[Heard]) -> str:
    return " ".join(word.text for word in words)


@given(st.integers(1, 5 * 3_600_000), st.sampled_from([10_000, 30_000]))
def test_windows_cover_everything_and_overlap(whole_ms: int, longest_ms: int) -> None:
    spans = list(windows(whole_ms, longest_ms))
    assert spans[0].start_ms == 0
    assert spans[-1].end_ms == whole_ms
    assert all(0 < span.end_ms - span.start_ms <= longest_ms for span in spans)
    for a, b in itertools.pairwise(spans):
        assert a.end_ms - b.start_ms >= min(OVERLAP_MS, whole_ms) - 1
    if whole_ms <= longest_ms:
        assert len(spans) == 1


def test_no_window_of_nothing() -> None:
    assert list(windows(0)) == []
    assert [span.end_ms - span.start_ms for span in windows(31_000)] == [18_000, 18_000]


def test_a_word_that_both_heard_is_the_seam() -> None:
    before = said("so the old man went to the mark", 24_000)
    after = said("man went to the market again today", 25_020)
    joined = join(before, after, OVERLAP)
    assert texts(joined) == "so the old man went to the market again today"


def test_stops_and_capitals_do_not_hide_that_words_are_one() -> None:
    before = said("we left. Then he came home", 25_500)
    after = said("Left, then he came home. And slept", 26_050)
    assert texts(join(before, after, OVERLAP)) in {
        "we left. Then he came home. And slept",
        "we left. then he came home. And slept",
    }


def test_words_of_the_same_letters_far_apart_are_two() -> None:
    before, after = said("no", 25_000), said("no", 29_000)
    assert texts(join(before, after, OVERLAP)) == "no no"


def test_nothing_in_common_keeps_what_only_one_heard() -> None:
    assert texts(join(said("a b c d", 24_000), [], OVERLAP)) == "a b c d"
    assert texts(join([], said("a b c d", 25_000), OVERLAP)) == "a b c d"
    assert texts(join(said("a b", 25_000), said("c d", 28_500), OVERLAP)) == "a b c d"
    # The first window fell silent before the middle, and the second heard what came between.
    assert texts(join(said("a", 25_000), said("b c d", 25_700), OVERLAP)) == "a b c d"
    # The second began late.
    assert texts(join(said("a b c d", 26_000), said("e", 29_000), OVERLAP)) == "a b c d e"


def test_two_readings_of_the_same_sound_are_not_both_kept() -> None:
    before, after = said("recognise speech", 26_500), said("wreck a nice beach", 26_500, each_ms=250)
    assert len(join(before, after, OVERLAP)) <= 4


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=400),
    st.integers(200, 900),
    st.integers(0, 2**32),
)
def test_windows_of_one_text_join_to_that_text(letters: list[str], each_ms: int, seed: int) -> None:
    """Whatever the words: windows that hear right, each word whole and a little off in time, give each word once."""
    whole = [Heard(f"{letter}{i % 7}", i * each_ms, (i + 1) * each_ms) for i, letter in enumerate(letters)]
    joined: list[Heard] = []
    end = 0
    for number, span in enumerate(windows(len(whole) * each_ms)):
        off = (seed >> number % 16) % 3 * 20 - 20
        heard = [
            Heard(word.text, max(0, word.start_ms + off), word.end_ms + off)
            for word in whole
            if span.start_ms <= word.start_ms and word.end_ms <= span.end_ms
        ]
        joined = join(joined, heard, Span(span.start_ms, max(end, span.start_ms)))
        end = span.end_ms
    assert texts(joined) == texts(whole)
    assert WINDOW_MS == 30_000


def test_the_commonest_language_is_that_of_most_words() -> None:
    def one(language: str, words: int) -> Transcript:
        return Transcript(tuple(WordTiming("a", 0.0, 1.0) for _ in range(words)), language)

    assert commonest([one("eng", 5), one("cym", 2), one("eng", 1), one("", 0)]) == "eng"
    assert commonest([one("", 0)]) == ""
    assert commonest([]) == ""


@pytest.mark.parametrize("text", ["don't", "Don't,", "DONT"])
def test_letters_are_what_readings_have_in_common(text: str) -> None:
    assert Heard(text, 0, 1).letters == "dont"
