"""Which utterances share a segment, which stand alone, and which are skipped for what reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.chat.document import Document, Problem, Utterance
from align_client.chat.wor import Bullet
from align_client.chat.words import Item, ItemKind
from align_client.media.stream import Span
from align_client.plan import CONTEXT_MS, MAX_CHARACTERS, MAX_GAP_MS, OVERHANG_MS, Plan, past_end, plan
from align_client.sdk.types import Word, WordKind

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3_600_000


def item(*spoken: str, kind: ItemKind = ItemKind.WORD) -> Item:
    return Item(kind, spoken, "_".join(spoken), "eng", 1, 1)


SOUND = item(kind=ItemKind.UNKNOWN_SOUND)
PAUSE = item(kind=ItemKind.PAUSE)
HELLO = (item("hello"), item("you"))


def utterance(
    index: int,
    start_ms: int | None = None,
    end_ms: int | None = None,
    items: tuple[Item, ...] = HELLO,
    problem: Problem | None = None,
) -> Utterance:
    bullet = None if start_ms is None or end_ms is None else Bullet(start_ms, end_ms)
    return Utterance(index, index + 1, "CHI", bullet, bullet, items, ".", None, problem)


def timed(*bullets: tuple[int, int] | None) -> list[Utterance]:
    return [utterance(index, *(bullet or (None, None))) for index, bullet in enumerate(bullets)]


def groups(made: Plan) -> list[list[int]]:
    return [[part.utterance for part in segment.parts] for segment in made.segments]


def spans(made: Plan) -> list[tuple[int, int]]:
    return [(segment.span.start_ms, segment.span.end_ms) for segment in made.segments]


def test_neighbours_share_a_segment_up_to_its_length() -> None:
    made = plan(timed((0, 5000), (5000, 10_000), (10_000, 15_000), (15_000, 16_000)), duration_ms=HOUR)
    assert groups(made) == [[0, 1, 2], [3]]
    assert not made.skipped


def test_a_long_silence_is_not_sent() -> None:
    gap = MAX_GAP_MS
    assert groups(plan(timed((0, 1000), (1000 + gap, 2000 + gap)), duration_ms=HOUR)) == [[0, 1]]
    assert groups(plan(timed((0, 1000), (1001 + gap, 2000 + gap)), duration_ms=HOUR)) == [[0], [1]]


def test_a_group_has_a_most_of_characters() -> None:
    word = item("a" * (MAX_CHARACTERS // 2 - 1))
    both = [utterance(0, 0, 1000, (word,)), utterance(1, 1000, 2000, (word,))]
    assert groups(plan(both, duration_ms=HOUR)) == [[0, 1]]
    more = [*both, utterance(2, 2000, 3000, (item("a"),))]
    assert groups(plan(more, duration_ms=HOUR)) == [[0, 1], [2]]


def test_a_long_utterance_is_a_segment_of_its_own_and_whole() -> None:
    made = plan(timed((0, 1000), (1000, 41_000), (41_000, 42_000)), duration_ms=HOUR)
    assert groups(made) == [[0], [1], [2]]
    assert spans(made)[1] == (1000, 41_000)


def test_a_longer_one_than_the_server_takes_is_skipped() -> None:
    made = plan(timed((0, 1000), (1000, 41_000), (41_000, 42_000)), duration_ms=HOUR, longest_ms=30_000)
    assert groups(made) == [[0], [2]]
    assert "40.000 s, more than the 30.000 s" in made.skipped[1]


@pytest.mark.parametrize("longest", [2000, 2100, 2399, 15_000])
def test_context_does_not_lead_past_what_the_server_takes(longest: int) -> None:
    made = plan(timed((1000, 3000), (3500, 18_000)), duration_ms=HOUR, longest_ms=longest)
    assert groups(made)[0] == [0]
    assert all(end - start <= longest for start, end in spans(made))


def test_the_context_stops_at_the_bullets_of_others_and_at_the_ends_of_the_recording() -> None:
    made = plan(timed((50, 1000), (4000, 5000), (5100, 25_000), (25_150, 26_000)), duration_ms=26_100)
    assert spans(made) == [(0, 1000 + CONTEXT_MS), (3800, 5100), (5000, 25_150), (25_000, 26_100)]


def test_overlapping_utterances_are_alone_without_context_where_they_overlap() -> None:
    made = plan(timed((1000, 5000), (4000, 8000), (7000, 12_000), (12_500, 13_000)), duration_ms=HOUR)
    assert groups(made) == [[0], [1], [2], [3]]
    assert spans(made)[:2] == [(800, 5000), (4000, 8000)]


def test_utterances_inside_another_are_alone() -> None:
    made = plan(timed((1000, 9000), (2000, 3000), (3000, 4000), (9000, 9500)), duration_ms=HOUR)
    assert groups(made) == [[0], [1], [2], [3]]
    assert (2000, 3000) in spans(made)


def test_bullets_that_run_backwards_are_apart_and_segments_sorted_by_time() -> None:
    made = plan(timed((50_000, 55_000), (3000, 4000), (5000, 6000)), duration_ms=HOUR)
    assert groups(made) == [[1, 2], [0]]


def test_utterances_with_a_stranger_between_them_in_time_are_apart() -> None:
    assert groups(plan(timed((0, 1000), (1500, 2000), (1000, 1500)), duration_ms=HOUR)) == [[0], [2], [1]]


@pytest.mark.parametrize("bullet", [(4000, 4000), (5000, 4000)])
def test_a_reversed_or_empty_bullet_has_a_reason(bullet: tuple[int, int]) -> None:
    made = plan(timed((0, 1000), bullet, (6000, 7000)), duration_ms=HOUR)
    assert groups(made) == [[0], [2]]
    assert f"{bullet[0]} to {bullet[1]} ms" in made.skipped[1]


def test_a_bullet_beyond_the_recording_has_a_reason() -> None:
    made = plan(
        timed((0, 1000), (1000, 5000 + OVERHANG_MS), (4000, 5001 + OVERHANG_MS), (9000, 9500)), duration_ms=5000
    )
    assert groups(made) == [[0], [1]]
    assert all(end <= 5000 for _, end in spans(made))
    assert "the recording at 5.000 s" in made.skipped[2]
    assert "the recording at 5.000 s" in made.skipped[3]
    assert past_end(Bullet(0, 1000), 5000) is None
    assert past_end(Bullet(5000, 5100), 5000) is not None


def test_without_a_duration_nothing_is_held_against_it() -> None:
    assert groups(plan(timed((HOUR, HOUR + 1000)), duration_ms=None)) == [[0]]


def test_an_utterance_that_was_not_understood_is_left_alone_and_parts_its_neighbours() -> None:
    broken = utterance(1, 1000, 1500, (), Problem(2, 7, "a bracket without its end"))
    made = plan([utterance(0, 0, 1000), broken, utterance(2, 1500, 2000)], duration_ms=HOUR)
    assert groups(made) == [[0], [2]]
    assert made.skipped == {1: "a bracket without its end"}


def test_untimed_utterances_join_the_timed_ones_around_them() -> None:
    made = plan(timed((0, 2000), None, None, (4000, 6000)), duration_ms=HOUR)
    assert groups(made) == [[0, 1, 2, 3]]
    assert [part.bullet is None for part in made.segments[0].parts] == [False, True, True, False]
    assert made.segments[0].parts[1].zone == Span(2000, 4000)


def test_the_gap_alone_is_a_segment_where_the_whole_would_be_too_long() -> None:
    made = plan(timed((0, 10_000), None, (14_000, 20_000)), duration_ms=HOUR)
    assert groups(made) == [[0], [1], [2]]
    assert spans(made)[1] == (10_000, 14_000)


def test_a_gap_that_is_too_long_or_too_short_or_claimed_has_a_reason() -> None:
    too_long = plan(timed((0, 1000), None, (17_000, 18_000)), duration_ms=HOUR)
    assert "too long" in too_long.skipped[1]
    too_short = plan(timed((0, 1000), None, (1040, 2000)), duration_ms=HOUR)
    assert "only 40 ms" in too_short.skipped[1]
    backwards = plan(timed((4000, 5000), None, (1000, 2000)), duration_ms=HOUR)
    assert "run backwards" in backwards.skipped[1]
    claimed = plan(timed((0, 1000), None, (4000, 5000), (2000, 3000)), duration_ms=HOUR)
    assert "overlap" in claimed.skipped[1]
    for made in (too_long, too_short, backwards, claimed):
        assert [1] not in groups(made)


def test_untimed_utterances_without_timed_ones_around_them_have_a_reason() -> None:
    made = plan(timed(None, (1000, 2000), None), duration_ms=HOUR)
    assert groups(made) == [[1]]
    assert set(made.skipped) == {0, 2}
    assert all("no time bullet" in reason for reason in made.skipped.values())
    assert set(plan(timed(None, None), duration_ms=HOUR).skipped) == {0, 1}


def test_an_untimed_utterance_beside_one_that_cannot_be_used_has_a_reason() -> None:
    broken = utterance(2, None, None, (), Problem(3, 1, "broken"))
    made = plan([utterance(0, 0, 500), utterance(1), broken, utterance(3), utterance(4, 9000, 9500)], duration_ms=HOUR)
    assert groups(made) == [[0], [4]]
    assert set(made.skipped) == {1, 2, 3}


def test_sounds_and_pauses_are_sent_in_their_places() -> None:
    said = (item("you", "know"), PAUSE, SOUND, item("hm"))
    made = plan([utterance(0, 0, 1000, said), utterance(1, 1000, 2000, HELLO)], duration_ms=HOUR)
    (segment,) = made.segments
    assert segment.words == (
        Word("you", "eng"), Word("know", "eng"), Word("", "eng", WordKind.PAUSE),
        Word("", "eng", WordKind.UNKNOWN_SOUND), Word("hm", "eng"), Word("hello", "eng"), Word("you", "eng"),
    )  # fmt: skip
    assert [part.items for part in segment.parts] == [((0, 2), (2, 3), (3, 4), (4, 5)), ((5, 6), (6, 7))]


def test_an_utterance_without_words_is_not_aligned_but_its_sounds_take_their_time() -> None:
    xxx = (SOUND,)
    between = [utterance(0, 0, 1000), utterance(1, 1000, 2000, xxx), utterance(2, 2000, 3000)]
    made = plan(between, duration_ms=HOUR)
    assert groups(made) == [[0, 2]]
    assert [word.kind for word in made.segments[0].words].count(WordKind.UNKNOWN_SOUND) == 1
    assert (made.wordless, made.skipped) == ((1,), {})
    made = plan([utterance(0, 0, 1000, xxx), utterance(1, 1000, 2000), utterance(2, 2000, 3000, xxx)], duration_ms=HOUR)
    assert groups(made) == [[1]]
    assert spans(made) == [(1000, 2000)]
    assert made.wordless == (0, 2)
    assert plan([utterance(0, 0, 1000, xxx)], duration_ms=HOUR).segments == ()


def test_an_empty_utterance_does_not_part_its_neighbours() -> None:
    made = plan([utterance(0, 0, 1000), utterance(1, None, None, ()), utterance(2, 1000, 2000)], duration_ms=HOUR)
    assert groups(made) == [[0, 2]]
    assert made.wordless == (1,)


def test_an_empty_transcript_has_an_empty_plan() -> None:
    assert plan([], duration_ms=HOUR) == Plan((), {}, ())


EXPECTED_CASES = {
    "fa_backwards_bullets": ([[1], [0]], set()),
    "fa_compound_filler": ([], {0}),
    "fa_hello_world_goodbye_timed": ([[0, 1]], set()),
    "fa_hello_world_timed": ([[0]], set()),
    "fa_mixed_timed_untimed": ([[1]], {0}),
    "fa_mixed_timed_untimed_interleaved": ([[0, 1, 2], [3, 4], [5]], set()),
    "fa_non_monotonic_bullets": ([[1], [0]], set()),
    "fa_overlapping_end_times": ([[0], [1], [2]], set()),
    "fa_pretimed_trailing_gesture": ([[0]], set()),
    "fa_pretimed_with_fillers": ([[0]], set()),
    "fa_split_on_time": ([[0], [1]], set()),
    "fa_two_timed_utterances": ([[0, 1]], set()),
    "fa_two_untimed_with_media": ([], {0, 1}),
    "fa_untimed_for_utr": ([], {0, 1, 2}),
    "utr_lazy_overlap_backchannel": ([], {0, 1, 2}),
    "utr_lazy_overlap_dense": ([], {0, 1, 2, 3, 4}),
}


@pytest.mark.corpus
@pytest.mark.parametrize("name", EXPECTED_CASES)
def test_the_cases_that_aligners_meet_are_planned(corpus_dir: Path, name: str) -> None:
    document = Document.parse((corpus_dir / "chat" / "align-cases" / f"{name}.cha").read_bytes())
    made = plan(document.utterances, duration_ms=HOUR)
    assert (groups(made), set(made.skipped)) == EXPECTED_CASES[name]


@pytest.mark.corpus
def test_every_utterance_of_the_corpus_is_accounted_for(corpus_dir: Path) -> None:
    files = sorted((corpus_dir / "chat").rglob("*.cha"))
    assert files
    for path in files:
        utterances = Document.parse(path.read_bytes()).utterances
        check_account(utterances, plan(utterances, duration_ms=None))


def check_account(utterances: tuple[Utterance, ...] | list[Utterance], made: Plan) -> None:
    aligned = [part.utterance for segment in made.segments for part in segment.parts]
    everywhere = [*aligned, *made.skipped, *made.wordless]
    assert sorted(everywhere) == [u.index for u in utterances]
    assert all(made.skipped.values())
    for segment in made.segments:
        for part in segment.parts:
            bullet = utterances[part.utterance].span or utterances[part.utterance].bullet
            assert part.bullet == bullet
            assert segment.span.start_ms <= part.zone.start_ms < part.zone.end_ms <= segment.span.end_ms
            assert len(part.items) == len(utterances[part.utterance].items)
    starts = [segment.span.start_ms for segment in made.segments]
    assert starts == sorted(starts)


ITEMS = st.lists(st.sampled_from([item("hello"), item("you", "know"), SOUND, PAUSE]), max_size=5).map(tuple)
BULLETS = st.none() | st.tuples(st.integers(0, 60_000), st.integers(-100, 20_000)).map(lambda b: (b[0], b[0] + b[1]))
UTTERANCES = st.lists(st.tuples(BULLETS, ITEMS, st.sampled_from([None] * 9 + [Problem(1, 1, "broken")])), max_size=30)


@given(
    made_of=UTTERANCES,
    ordered=st.booleans(),
    duration_ms=st.none() | st.integers(1, 70_000),
    context_ms=st.sampled_from([0, 200, 1000]),
    longest_ms=st.none() | st.integers(1, 40_000),
)
def test_every_utterance_is_in_one_segment_or_skipped_or_has_no_words(
    made_of: list[tuple[tuple[int, int] | None, tuple[Item, ...], Problem | None]],
    *,
    ordered: bool,
    duration_ms: int | None,
    context_ms: int,
    longest_ms: int | None,
) -> None:
    if ordered:
        made_of.sort(key=lambda one: one[0] or (0, 0))
    utterances = [
        utterance(index, bullet and bullet[0], bullet and bullet[1], items, problem)
        for index, (bullet, items, problem) in enumerate(made_of)
    ]
    made = plan(utterances, duration_ms=duration_ms, context_ms=context_ms, longest_ms=longest_ms)
    check_account(utterances, made)
    for segment in made.segments:
        length = segment.span.end_ms - segment.span.start_ms
        assert longest_ms is None or length <= longest_ms
        assert len(segment.parts) == 1 or length <= 15_000 + 2 * context_ms
        assert duration_ms is None or segment.span.end_ms <= duration_ms
        mine = {part.utterance for part in segment.parts}
        strangers = [other for other in utterances if other.index not in mine and other.bullet and other.items]
        for other in strangers if len(mine) > 1 else []:
            assert other.bullet is not None
            under = min(segment.span.end_ms, other.bullet.end_ms) - max(segment.span.start_ms, other.bullet.start_ms)
            assert under <= 0 or other.index in made.wordless
