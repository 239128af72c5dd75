"""Which stretches of a recording utterances without a time must be in, and how the plan takes what was found there."""

from __future__ import annotations

import pytest

from align_client.chat.document import Document
from align_client.chat.wor import Bullet
from align_client.media.stream import Span
from align_client.plan import RECOVERED_MS, plan
from align_client.recovery import fit, stretches

LENGTH_MS = 100_000
HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tCHI Target_Child\n@ID:\teng|x|CHI|||||Target_Child|||\n"


def document(*bullets: tuple[int, int] | None) -> Document:
    """Utterances of three words, each with its bullet or none."""
    lines = []
    for number, bullet in enumerate(bullets):
        mark = f" \x15{bullet[0]}_{bullet[1]}\x15" if bullet else ""
        lines.append(f"*CHI:\twords of number{number} .{mark}\n".replace("number0", "nothing"))
    return Document.parse((HEAD + "".join(lines) + "@End\n").encode())


def looked_for(*bullets: tuple[int, int] | None) -> list[tuple[tuple[int, int], list[int]]]:
    utterances = document(*bullets).utterances
    lost = {utterance.index for utterance in utterances if utterance.bullet is None}
    found = stretches(utterances, lost, LENGTH_MS)
    return [((one.span.start_ms, one.span.end_ms), [u.index for u in one.utterances]) for one in found]


@pytest.mark.parametrize(
    ("bullets", "expected"),
    [
        ((None, None), [((0, LENGTH_MS), [0, 1])]),
        ((None, (5000, 6000), None), [((0, 5000), [0]), ((6000, LENGTH_MS), [2])]),
        (((1000, 2000), None, None, (50_000, 51_000)), [((2000, 50_000), [1, 2])]),
        (((1000, 9000), (2000, 3000), None, (50_000, 51_000)), [((9000, 50_000), [2])]),  # after the latest end
        (((50_000, 51_000), None, (1000, 2000), None), [((51_000, LENGTH_MS), [3])]),  # runs backwards
        (((0, LENGTH_MS), None), []),
        (((1000, 2000), (3000, 4000)), []),
        (((1000, 2000), None, (200_000, 201_000)), [((2000, LENGTH_MS), [1])]),  # a bullet past the end
    ],
)
def test_utterances_are_looked_for_between_the_timed_ones_around_them(
    bullets: tuple[tuple[int, int] | None, ...], expected: list[tuple[tuple[int, int], list[int]]]
) -> None:
    assert looked_for(*bullets) == expected


def test_only_what_is_lost_is_looked_for() -> None:
    utterances = document(None, None, None).utterances
    (one,) = stretches(utterances, {1}, LENGTH_MS)
    assert one.span == Span(0, LENGTH_MS)
    assert [utterance.index for utterance in one.utterances] == [1]


def test_what_was_found_is_planned_like_a_bullet_with_more_room_and_gets_its_bullet_from_its_words() -> None:
    utterances = document((1000, 2000), None, None).utterances
    places = {1: Bullet(40_000, 41_000), 2: Bullet(60_000, 61_000)}
    drawn = plan(utterances, duration_ms=LENGTH_MS, recovered=places)
    assert not drawn.skipped
    parts = {part.utterance: (segment, part) for segment in drawn.segments for part in segment.parts}
    assert set(parts) == {0, 1, 2}
    segment, part = parts[1]
    assert part.bullet is None
    assert segment.span == Span(40_000 - RECOVERED_MS, 41_000 + RECOVERED_MS)
    assert parts[0][1].bullet == Bullet(1000, 2000)


def test_found_utterances_do_not_reach_into_each_other() -> None:
    utterances = document(None, None).utterances
    drawn = plan(utterances, duration_ms=LENGTH_MS, recovered={0: Bullet(5000, 6000), 1: Bullet(6100, 7000)})
    zones = [part.zone for segment in drawn.segments for part in segment.parts]
    assert zones[0].start_ms == 5000 - RECOVERED_MS
    assert zones[1].end_ms == 7000 + RECOVERED_MS


def test_of_the_words_that_of_one_that_does_not_fit_counts_most() -> None:
    assert fit([0.5, 0.5]) == pytest.approx(0.5)
    assert fit([0.9, 0.1]) == pytest.approx(0.3)
    assert fit([]) == 0
