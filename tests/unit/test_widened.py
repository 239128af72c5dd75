"""Bullets as wide as their words: never narrower, and taking nothing from their neighbours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.chat.document import Document, UtteranceTimes
from align_client.chat.wor import Bullet, WordTime
from align_client.plan import widened

HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tCHI Target_Child\n@ID:\teng|x|CHI|||||Target_Child|||\n"


def document(*bullets: str) -> Document:
    tiers = "".join(f"*CHI:\thello my world . \x15{bullet}\x15\n" for bullet in bullets)
    return Document.parse((HEAD + tiers.replace(" \x15\x15", "") + "@End\n").encode())


def wide(document: Document, index: int, *spans: tuple[int, int] | None) -> Bullet | None:
    words = tuple(None if span is None else WordTime(*span) for span in spans)
    return widened(document.utterances, index, UtteranceTimes(None, words)).bullet


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (((4900, 5200), (5300, 5500), (5600, 6200)), Bullet(4900, 6200)),
        (((5100, 5200), (5300, 5500), (5600, 6200)), Bullet(5000, 6200)),
        (((5100, 5200), (5300, 5500), (5600, 5700)), None),  # within: it stays
        (((4900, 5200), None, None), Bullet(4900, 6000)),
        ((None, None, None), None),
        (((2000, 5200), (5300, 5500), (5600, 9000)), Bullet(4000, 7000)),  # the neighbours' bullets
    ],
)
def test_a_bullet_reaches_as_far_as_its_words(
    spans: tuple[tuple[int, int] | None, ...], expected: Bullet | None
) -> None:
    assert wide(document("3000_4000", "5000_6000", "7000_8000"), 1, *spans) == expected


def test_the_first_and_the_last_have_no_neighbour() -> None:
    only = document("5000_6000")
    assert wide(only, 0, (4000, 5200), (5300, 5500), (5600, 7000)) == Bullet(4000, 7000)


def test_overlapping_bullets_keep_what_they_have() -> None:
    both = document("5000_6000", "5500_6500")
    assert wide(both, 0, (4900, 5200), (5300, 5500), (5600, 6300)) == Bullet(4900, 6000)
    assert wide(both, 1, (5400, 5700), (5800, 5900), (6000, 6600)) == Bullet(5500, 6600)


def test_an_utterance_without_a_bullet_keeps_the_one_it_was_given() -> None:
    bare = document("")
    words = (WordTime(1, 2), WordTime(3, 4), WordTime(5, 6))
    times = UtteranceTimes(Bullet(1, 6), words)
    assert widened(bare.utterances, 0, times) is times


@given(st.lists(st.integers(0, 9999), min_size=6, max_size=6), st.lists(st.integers(0, 9999), min_size=6, max_size=6))
def test_it_never_narrows(marks: list[int], times: list[int]) -> None:
    edges, spans = sorted(marks), sorted(times)
    three = document(*(f"{a}_{b}" for a, b in zip(edges[::2], edges[1::2], strict=True)))
    found = wide(three, 1, *zip(spans[::2], spans[1::2], strict=True))
    if found is not None:
        assert min(edges[1], edges[2]) <= found.start_ms <= edges[2]
        assert edges[3] <= found.end_ms <= edges[4]
