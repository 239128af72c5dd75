"""Which words of a transcript are which of those that were heard."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.matching import BLOCK, LIKE, match

WORDS = st.lists(st.sampled_from(["the", "cat", "cats", "saw", "a", "dog", "elephant", "ran", "home", ""]), max_size=30)


def pairs(said: str, heard: str) -> list[int | None]:
    return [None if found is None else found.heard for found in match(said.split(), heard.split())]


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("the cat saw a dog", "the cat saw a dog", [0, 1, 2, 3, 4]),
        ("the cat saw a dog", "the cat saw dog", [0, 1, 2, None, 3]),
        ("the cat saw a dog", "well the cat really saw a dog then", [1, 2, 4, 5, 6]),
        ("the elephant ran", "the elephants ran", [0, 1, 2]),  # alike
        ("the elephant ran", "the house ran", [0, None, 2]),  # not alike
        ("the cat", "", [None, None]),
        ("", "the cat", []),
        ("it is the cat", "the dog and it is the cat", [3, 4, 5, 6]),  # where words follow one another
        ("кот видел собаку", "вот кот видел собаку", [1, 2, 3]),
    ],
)
def test_words_are_matched_in_order(said: str, heard: str, expected: list[int | None]) -> None:
    assert pairs(said, heard) == expected


@given(WORDS, WORDS)
def test_matches_rise_and_are_alike(said: list[str], heard: list[str]) -> None:
    found = match(said, heard)
    assert len(found) == len(said)
    kept = [one for one in found if one is not None]
    assert all(a.heard < b.heard for a, b in itertools.pairwise(kept))
    assert all(LIKE <= one.likeness <= 1 for one in kept)
    for word, one in zip(said, found, strict=True):
        assert one is None or (word != "" and heard[one.heard] != "")


@given(WORDS)
def test_a_list_is_matched_with_itself(words: list[str]) -> None:
    assert [one and one.likeness for one in match(words, words)] == [1.0 if word else None for word in words]


def test_what_lies_across_blocks_of_rows_is_matched_like_the_rest() -> None:
    words = [f"word{i}number{i * i}" for i in range(3 * BLOCK + 5)]
    heard = [word for i, word in enumerate(words) if i % 7]
    found = match(words, heard)
    # Those of one number less may be alike: what was heard is never left to another.
    right = [one is not None and heard[one.heard] == word for word, one in zip(words, found, strict=True)]
    assert all(is_right for i, is_right in enumerate(right) if i % 7)


def test_long_lists_take_little_memory() -> None:
    noise = np.random.default_rng(0)
    vocabulary = ["".join(noise.choice(list("etaoinshrdlu"), size)) for size in noise.integers(2, 9, 1000)]
    said = [vocabulary[i] for i in noise.integers(0, 1000, 3000)]
    heard = [word for word in said if noise.random() > 0.1]
    tracemalloc.start()
    try:
        found = match(said, heard)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(one is not None for one in found) > 0.95 * len(heard)
    assert peak < 20e6  # a whole table of bytes would be 8 MB, of both states as floats 65 MB
