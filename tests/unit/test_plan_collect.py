"""How an engine's times become those of utterances: in order, without overlap, inside what is theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.chat.document import Document
from align_client.chat.wor import Bullet, WordTime
from align_client.media.stream import Span
from align_client.plan import Collected, Part, Planned, collect, plan
from align_client.sdk.types import Word, WordKind

Timings = list[tuple[int, int] | None]
OPEN = Span(0, 60_000)


def segment(words: str, *parts: Part, span: Span = OPEN) -> Planned:
    """A segment of these words; `-` is a pause and `~` an unknown sound."""
    kinds = {"-": WordKind.PAUSE, "~": WordKind.UNKNOWN_SOUND}
    return Planned(
        span, tuple(Word("" if w in kinds else w, "eng", kinds.get(w, WordKind.WORD)) for w in words.split()), parts
    )


def single(count: int, *, first: int = 0, utterance: int = 0, zone: Span = OPEN, bullet: Bullet | None = None) -> Part:
    """A part whose items are one word each."""
    return Part(utterance, tuple((n, n + 1) for n in range(first, first + count)), zone, bullet)


def times(collected: Collected, utterance: int = 0) -> list[tuple[int, int] | None]:
    words = collected.times[utterance].words
    return [None if time is None else (time.start_ms, time.end_ms) for time in words]


def test_times_are_those_of_the_recording() -> None:
    made = collect(segment("a b", single(2), span=Span(7000, 9000)), [(10, 500), (500, 1900)])
    assert times(made) == [(7010, 7500), (7500, 8900)]
    assert made.repairs == ()


def test_an_item_of_several_words_lasts_from_the_first_to_the_last() -> None:
    part = Part(3, ((0, 2), (2, 5)), OPEN, None)
    made = collect(segment("you know New York City", part), [(10, 20), (25, 40), (50, 60), None, (70, 80)])
    assert times(made, 3) == [(10, 40), (50, 80)]


@pytest.mark.parametrize("lost", [0, 1])
def test_an_item_whose_first_or_last_word_has_no_time_has_none(lost: int) -> None:
    part = Part(0, ((0, 2), (2, 3)), OPEN, None)
    timings: Timings = [(10, 20), (25, 40), (50, 60)]
    timings[lost] = None
    assert times(collect(segment("you know it", part), timings)) == [None, (50, 60)]


def test_an_utterance_with_a_bullet_keeps_it_and_one_without_gets_that_of_its_words() -> None:
    parts = single(2, bullet=Bullet(0, 900)), single(3, first=2, utterance=1)
    made = collect(segment("a b ~ c d", *parts), [(100, 200), (200, 300), (1000, 1400), (1400, 1500), (1600, 1700)])
    assert made.times[0].bullet is None
    assert made.times[1].bullet == Bullet(1400, 1700)


def test_an_utterance_none_of_whose_words_has_a_time_gets_no_bullet() -> None:
    made = collect(segment("a ~", single(2)), [None, (10, 20)])
    assert made.times[0].bullet is None
    assert times(made) == [None, (10, 20)]


def test_words_that_overlap_part_where_the_second_starts() -> None:
    made = collect(segment("a b", single(2)), [(0, 500), (400, 900)])
    assert times(made) == [(0, 400), (400, 900)]
    assert [(repair.utterance, repair.item) for repair in made.repairs] == [(0, 0)]


def test_a_word_that_starts_before_the_one_it_follows_starts_where_that_one_ends() -> None:
    made = collect(segment("a b", single(2)), [(300, 500), (200, 900)])
    assert times(made) == [(300, 500), (500, 900)]
    assert made.repairs[0].item == 1


def test_a_word_found_wholly_before_the_one_it_follows_has_no_time() -> None:
    made = collect(segment("a b c", single(3)), [(300, 500), (100, 200), (600, 700)])
    assert times(made) == [(300, 500), None, (600, 700)]
    assert "left without a time" in made.repairs[0].message


def test_a_word_of_no_length_has_no_time_and_a_pause_of_none_is_no_repair() -> None:
    made = collect(segment("a - b", single(3)), [(10, 20), (20, 20), (30, 30)])
    assert times(made) == [(10, 20), None, None]
    assert [repair.item for repair in made.repairs] == [2]


def test_a_word_is_cut_at_the_edge_of_what_is_its_utterances() -> None:
    made = collect(segment("a b", single(2, zone=Span(100, 800))), [(0, 500), (500, 900)])
    assert times(made) == [(100, 500), (500, 800)]
    assert len(made.repairs) == 2


def test_a_word_found_in_anothers_stretch_has_no_time() -> None:
    parts = single(2, zone=Span(0, 1000)), single(1, first=2, utterance=1, zone=Span(1000, 2000))
    made = collect(segment("a b c", *parts), [(0, 500), (1100, 1400), (1500, 1600)])
    assert times(made, 0) == [(0, 500), None]
    assert times(made, 1) == [(1500, 1600)]
    assert [(repair.utterance, repair.item) for repair in made.repairs] == [(0, 1)]


def test_the_number_of_times_must_be_that_of_the_words() -> None:
    with pytest.raises(ValueError, match="1 times for the 2 words"):
        collect(segment("a b", single(2)), [(0, 1)])


TRANSCRIPT = """@UTF8
@Begin
@Languages:\teng
@Participants:\tCHI Child
*CHI:\thello &-you_know there . \x151000_3000\x15
*CHI:\tin the (.) gap .
*CHI:\txxx and the end ! \x155000_7000\x15
@End
"""


@given(edges=st.lists(st.none() | st.tuples(st.integers(0, 7000), st.integers(0, 2000)), min_size=12, max_size=12))
def test_whatever_an_engine_says_times_are_ordered_and_fit_their_document(
    edges: list[tuple[int, int] | None],
) -> None:
    document = Document.parse(TRANSCRIPT.encode())
    (whole,) = plan(document.utterances, duration_ms=8000).segments
    assert len(whole.words) == len(edges)
    timings: Timings = [edge and (edge[0], edge[0] + edge[1]) for edge in edges]
    made = collect(whole, timings)
    assert document.with_times(made.times).startswith(b"@UTF8")
    end = 0
    for part in whole.parts:
        words = [time for time in made.times[part.utterance].words if time is not None]
        for time in words:
            assert isinstance(time, WordTime)
            assert end <= time.start_ms < time.end_ms
            assert part.zone.start_ms <= time.start_ms
            assert time.end_ms <= part.zone.end_ms
            end = time.end_ms
    again = collect(whole, [shifted(made, whole, index) for index in range(len(timings))])
    assert {index: found.bullet for index, found in again.times.items()} == {
        index: found.bullet for index, found in made.times.items()
    }


def shifted(made: Collected, whole: Planned, word: int) -> tuple[int, int] | None:
    """The collected time of the item that a word belongs to, seen from the start of the segment."""
    for part in whole.parts:
        for index, (first, stop) in enumerate(part.items):
            time = made.times[part.utterance].words[index]
            if first <= word < stop and time is not None:
                return time.start_ms - whole.span.start_ms, time.end_ms - whole.span.start_ms
    return None
