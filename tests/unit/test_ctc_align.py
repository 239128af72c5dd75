"""The best path of tokens through emissions, and where on it each token lies."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_server.engines.ctc.align import Spans, fewest_frames, token_spans

if TYPE_CHECKING:
    import numpy.typing as npt

BLANK = 0


def heard(text: str, vocabulary: str = "_abcxy", certainty: float = 0.96) -> npt.NDArray[np.float32]:
    """Emissions of a model that is that certain of one token in each frame, `_` being the blank."""
    rest = (1 - certainty) / (len(vocabulary) - 1)
    emissions = np.full((len(text), len(vocabulary)), rest, np.float32)
    emissions[range(len(text)), [vocabulary.index(token) for token in text]] = certainty
    return np.log(emissions)


def places(spans: Spans) -> list[tuple[int, int]]:
    return list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True))


def test_tokens_lie_where_they_are_heard() -> None:
    spans = token_spans(heard("__a__bb_c_"), [1, 2, 3], BLANK)
    assert places(spans) == [(2, 3), (5, 7), (8, 9)]
    assert spans.posteriors.tolist() == pytest.approx([0.96] * 3)


def test_a_token_that_is_not_heard_has_a_small_posterior() -> None:
    spans = token_spans(heard("_a___c_"), [1, 2, 3], BLANK)
    assert spans.posteriors.tolist() == pytest.approx([0.96, 0.008, 0.96])
    assert places(spans)[::2] == [(1, 2), (5, 6)]


def test_of_ways_that_are_as_good_none_is_worse_than_another() -> None:
    # torchaudio's search fails here: the star fits every frame of silence alike, and the last "a" costs it 3.
    emissions = np.tile(np.array([0, -3], np.float32), (12, 1))
    emissions[[1, 9]] = -3, 0
    assert places(token_spans(emissions, [1, 2, 1], BLANK))[::2] == [(1, 2), (9, 10)]


def test_the_same_token_twice_has_a_blank_between() -> None:
    assert fewest_frames([1, 1, 2, 2, 2, 1]) == 9
    assert places(token_spans(heard("aaa"), [1, 1], BLANK)) == [(0, 1), (2, 3)]


def test_an_unknown_sound_takes_what_is_heard_between_its_neighbours_and_not_the_silence() -> None:
    star = 6
    spans = token_spans(heard("_aa____x___y__x_____bb__"), [1, star, 2], BLANK)
    assert places(spans) == [(1, 3), (7, 15), (20, 22)]


def test_an_unknown_sound_takes_nothing_from_a_neighbour_that_is_heard_badly() -> None:
    star = 6
    spans = token_spans(heard("_aaa__xx__bbb__", certainty=0.5), [1, star, 2], BLANK)
    assert places(spans) == [(1, 4), (6, 8), (10, 13)]


@pytest.mark.parametrize("targets", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 3], [3, 3], [3, 2, 1]])
def test_no_other_path_is_better(targets: list[int]) -> None:
    emissions = np.random.default_rng(len(targets)).normal(-5, 3, (6, 3)).astype(np.float32)
    starred = np.concatenate([emissions, emissions.max(1, keepdims=True) - 0.25], 1)
    paths = (path for path in itertools.product(range(4), repeat=6) if collapse(path) == targets)
    best = max(starred[range(6), path].sum() for path in paths)
    found = np.full(6, BLANK)
    for token, (start, end) in zip(targets, places(token_spans(emissions, targets, BLANK)), strict=True):
        found[start:end] = token
    assert collapse(tuple(found)) == targets
    assert starred[range(6), found].sum() == pytest.approx(best)


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_emissions_that_are_not_numbers_are_an_error(value: float) -> None:
    emissions = heard("_a_b_")
    emissions[1, 1] = emissions[3, 0] = value
    with pytest.raises(ArithmeticError, match="2 of 5 frames"):
        token_spans(emissions, [1, 2], BLANK)
