"""The shipped grapheme-to-phoneme model against the dictionary's words it has not seen, and its training on a few."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.g2p import G2P, MAX_LETTERS, MODEL, NGram, save
from align_server.engines.sphinx.lexicon import dictionary_path, read_dictionary
from align_server.engines.sphinx.train_g2p import (
    Aligner,
    Entry,
    edit_distance,
    measure,
    split,
    train,
)

if TYPE_CHECKING:
    from pathlib import Path

    Graphones: TypeAlias = list[tuple[str, tuple[str, ...]]]

G2P_MODEL = G2P.load()
READ_AGAIN = G2P.load()
REPORT = json.loads(MODEL.with_suffix(".json").read_text(encoding="utf-8"))
DICTIONARY = read_dictionary(dictionary_path())


def test_held_out_words_are_predicted_as_well_as_the_report_says() -> None:
    rates = measure(G2P_MODEL, DICTIONARY, REPORT["held_out"])
    stated = REPORT["held_out_error"]
    assert rates.word == pytest.approx(stated["word"], abs=0.005)
    assert rates.phone == pytest.approx(stated["phone"], abs=0.002)
    assert rates.best_of_three_word == pytest.approx(stated["best_of_three_word"], abs=0.005)
    assert rates.word < 0.29
    assert rates.best_of_three_word < 0.13


def test_words_held_out_are_not_trained_on() -> None:
    entries, held_out = split(DICTIONARY)
    assert held_out == REPORT["held_out"]
    assert len(entries) == REPORT["trained_on"]
    assert {entry.word for entry in entries}.isdisjoint(held_out)


@pytest.mark.parametrize(
    "word", ["", "'", "\u00df", "\u65e5\u672c", "42", "\U0001f600", "a b", "A", "a" * (MAX_LETTERS + 1)]
)
def test_what_the_model_has_no_letters_for_has_no_guess(word: str) -> None:
    assert G2P_MODEL.guesses(word) == ()


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=MAX_LETTERS))
@settings(max_examples=100, deadline=None)
def test_any_letters_have_different_guesses_and_the_same_ones_again(word: str) -> None:
    guesses = G2P_MODEL.guesses(word)
    assert 1 <= len(guesses) <= 3
    assert len(set(guesses)) == len(guesses)
    assert all(guesses)
    assert READ_AGAIN.guesses(word) == guesses


@pytest.fixture(scope="module")
def small() -> tuple[Graphones, NGram]:
    entries, _ = split(dict(list(DICTIONARY.items())[::80]))
    return train(entries, order=4)


def test_probabilities_after_any_history_sum_to_one(small: tuple[Graphones, NGram]) -> None:
    graphones, ngram = small
    state = ngram.start()[None]
    for letters, phones in [("b", ("B",)), ("a", ("AE",)), ("sh", ("SH",)), ("x", ("K", "S")), ("e", ())]:
        log_p, reached = ngram.score(state, np.arange(len(graphones)))
        assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)
        state = reached[:, graphones.index((letters, phones))]


def test_a_model_written_and_read_guesses_the_same(tmp_path: Path, small: tuple[Graphones, NGram]) -> None:
    save(tmp_path / "small.npz", *small)
    kept, read = G2P(*small), G2P.load(tmp_path / "small.npz")
    words = REPORT["held_out"][:100]
    same = sum(kept.guesses(word, 1) == read.guesses(word, 1) for word in words)
    assert same >= 95  # rounding to a byte may swap near equals


def test_each_round_of_training_fits_better() -> None:
    entries, _ = split(dict(list(DICTIONARY.items())[:2000]))
    aligner = Aligner(entries)
    fits = [aligner.train_once() for _ in range(4)]
    assert fits[1] < fits[2] < fits[3]


def test_a_word_with_too_many_phones_for_its_letters_is_left_out_of_the_alignment() -> None:
    fit = [Entry("ab", ("AE", "B")), Entry("a", ("AE",)), Entry("b", ("B",))]
    aligner = Aligner([*fit * 4, Entry("a", ("T", "R", "IH", "P"))])
    aligner.train(3)
    spelled = {("".join(letters for letters, _ in path), sum((p for _, p in path), ())) for path in aligner.best()}
    assert spelled == {(entry.word, entry.phones) for entry in fit}


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(EngineLoadError, match=r"broken\.npz"):
        G2P.load(path)


def test_an_archive_without_the_models_arrays_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", something=np.arange(3))
    with pytest.raises(EngineLoadError, match=r"other\.npz"):
        G2P.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "", 0), ("K AE T", "K AE T", 0), ("K AE T", "AE T S", 2), ("", "T", 1)]
)
def test_edit_distance_counts_phones(a: str, b: str, edits: int) -> None:
    assert edit_distance(tuple(a.split()), tuple(b.split())) == edits
