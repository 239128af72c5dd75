"""An utterance keeps a %wor tier that is whole, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.chat.document import Document, UtteranceTimes
from align_client.plan import collect, plan
from align_client.reuse import keeps_wor

HEAD = "@UTF8\n@Begin\n@Languages:\teng\n"


def keeps(main: str, wor: str, duration_ms: int = 10_000) -> bool:
    tiers = f"*CHI:\t{main}\n%mor:\tco|hello\n%wor:\t{wor}\n".replace("•", "\x15")
    (utterance,) = Document.parse(f"{HEAD}{tiers}@End\n".encode()).utterances
    return keeps_wor(utterance, duration_ms)


@pytest.mark.parametrize(
    ("main", "wor"),
    [
        ("hello big world . •1000_2000•", "hello •1000_1200• big •1200_1300• world •1500_2000• ."),
        ("hello , world . •1000_2000•", "hello •1000_1200• , world •1500_2000• ."),  # as other tools write it
        ("hello world . •1000_2000•", "hello •500_1200• world •1500_2500• ."),  # as far out as ours may be
        ("hello world . •1000_2000•", "hello •1000_1300• world •1200_2000• ."),  # a person may let words overlap
        ("hello &-uh &=laughs xxx world . •1000_2000•", "hello •1000_1200• uh •1300_1400• world •1500_2000• ."),
    ],
)
def test_a_tier_that_is_whole_is_kept(main: str, wor: str) -> None:
    assert keeps(main, wor)


@pytest.mark.parametrize(
    ("main", "wor"),
    [
        ("hello big world . •1000_2000•", "hello •1000_1200• world •1500_2000• ."),  # a word was added
        ("hello world . •1000_2000•", "hello •1000_1200• word •1500_2000• ."),  # a word was corrected
        ("hello world . •1000_2000•", "hello •1000_1200• world ."),  # one has no time
        ("hello world . •1000_2000•", "hello •1500_2000• world •1000_1200• ."),  # out of order
        ("hello world . •1000_2000•", "hello •1300_1200• world •1500_2000• ."),  # ends before it starts
        ("hello world . •9000_11000•", "hello •9000_9500• world •9500_10001• ."),  # beyond the recording
        ("hello world . •5000_6000•", "hello •1000_1200• world •1500_2000• ."),  # the bullet was moved
        ("hello world .", "hello •1000_1200• world •1500_2000• ."),  # a bullet is to be added
        ("hello world . •2000_1000•", "hello •1000_1200• world •1500_2000• ."),  # not understood
        ("xxx . •1000_2000•", "."),
    ],
)
def test_any_other_is_made_anew(main: str, wor: str) -> None:
    assert not keeps(main, wor)


@given(st.data())
def test_whatever_was_aligned_is_kept_when_all_its_words_have_times(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 900), st.integers(300, 6000), st.integers(1, 5)), max_size=6))
    lines, at = [], 0
    for gap, length, words in lengths:
        bullet = f" \x15{at + gap}_{at + gap + length}\x15" if data.draw(st.integers(0, 3)) else ""
        lines.append(f"*CHI:\t{'word ' * words}.{bullet}\n")
        at += gap + length
    document = Document.parse(f"{HEAD}{''.join(lines)}@End\n".encode())
    times: dict[int, UtteranceTimes] = {}
    for segment in plan(document.utterances, duration_ms=at + 50).segments:
        edges = st.integers(0, segment.span.end_ms - segment.span.start_ms)
        count = 2 * len(segment.words)
        found = sorted(data.draw(st.lists(edges, min_size=count, max_size=count)))
        times |= collect(segment, list(zip(found[::2], found[1::2], strict=True))).times
    again = Document.parse(document.with_times(times))
    for index, given_times in times.items():
        is_whole = all(given_times.words)
        assert keeps_wor(again.utterances[index], at + 50) == is_whole
