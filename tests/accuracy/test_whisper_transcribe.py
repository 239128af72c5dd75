"""OpenAI's tiny.en hears with us what it hears with openai-whisper, and every word that it hears has its time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import soundfile

from align_server.engines.engine import Result, Segment, Word
from align_server.engines.whisper import engine as whisper
from corpora import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.corpus

SETS: Final = ("ae", "commonvoice")
# Wrong words of SETS by `decode` of openai-whisper 20250625 with the same file of weights, temperature 0, language en;
# torch 2.11 in fp32 on a CPU, audio padded to 30 s.
THEIR_ERRORS: Final = 67
WORDS: Final = 388


def asking(corpus: Path, name: str) -> list[Segment]:
    folder = corpus / "speech" / name
    pcm = [soundfile.read(folder / entry["audio"], dtype="int16")[0] for entry in manifest(corpus, name)]
    return [Segment(f"{name} {i}", samples, (), transcribe="") for i, samples in enumerate(pcm)]


@pytest.fixture(scope="module")
def heard(tiny: whisper.WhisperEngine, corpus_dir: Path) -> dict[str, tuple[list[Segment], list[Result]]]:
    out = {}
    for name in SETS:
        asked = asking(corpus_dir, name)
        out[name] = (asked, tiny.align(asked))
    return out


def plain(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z0-9]+)*", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def errors(expected: Sequence[str], found: Sequence[str]) -> int:
    """Words put in, left out and put for others, at least."""
    costs = list(range(len(found) + 1))
    for i, word in enumerate(expected, 1):
        before, costs[0] = costs[0], i
        for j, other in enumerate(found, 1):
            before, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, before + (word != other))
    return costs[-1]


def wrong(corpus: Path, name: str, results: Sequence[Result]) -> tuple[int, int]:
    texts = [plain(entry["text"]) for entry in manifest(corpus, name)]
    found = [plain(" ".join(word.text for word in result.said)) for result in results]
    return sum(map(errors, texts, found)), sum(map(len, texts))


def test_no_more_words_are_wrong_than_with_openai(
    corpus_dir: Path, heard: dict[str, tuple[list[Segment], list[Result]]]
) -> None:
    counts = [wrong(corpus_dir, name, heard[name][1]) for name in SETS]
    assert sum(words for _, words in counts) == WORDS
    assert sum(found for found, _ in counts) <= THEIR_ERRORS


@pytest.mark.parametrize("tiny", ["fp32"], indirect=True)
def test_with_30_s_of_context_the_same_words_are_wrong(
    corpus_dir: Path, tiny: whisper.WhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper, "HEARING_MARGIN", 1500)
    found, _ = wrong(corpus_dir, "commonvoice", tiny.align(asking(corpus_dir, "commonvoice")))
    assert found == THEIR_ERRORS  # in ae there are none


def test_every_word_heard_has_a_time_in_order_and_within_the_audio(
    heard: dict[str, tuple[list[Segment], list[Result]]],
) -> None:
    for asked, results in heard.values():
        for item, result in zip(asked, results, strict=True):
            assert result.said
            assert len(result.said) == len(result.words)
            edges = [edge for word in result.words for edge in (word.start_ms, word.end_ms)]
            known = [edge for edge in edges if edge is not None]
            assert len(known) == len(edges)
            assert known == sorted(known)
            assert 0 <= known[0] <= known[-1] <= item.duration_ms


def test_words_heard_are_where_the_same_words_are_aligned(
    tiny: whisper.WhisperEngine, heard: dict[str, tuple[list[Segment], list[Result]]]
) -> None:
    asked, results = heard["commonvoice"]
    given = [Segment(one.id, one.pcm, result.said) for one, result in zip(asked, results, strict=True)]
    pairs = zip(results, tiny.align(given), strict=True)
    same = [one.words == other.words for one, other in pairs]  # unlike where the model spells a word in its own way
    assert np.mean(same) >= 0.9


def test_words_heard_are_near_the_labels(
    corpus_dir: Path, heard: dict[str, tuple[list[Segment], list[Result]]]
) -> None:
    entries, (_, results) = manifest(corpus_dir, "ae"), heard["ae"]
    right = [
        [word["word"].lower() for word in entry["words"]] == plain(" ".join(word.text for word in result.said))
        for entry, result in zip(entries, results, strict=True)
    ]
    assert sum(right) >= 6
    owners = np.repeat(right, [len(entry["words"]) for entry in entries])
    starts = [w.start_ms for r, ok in zip(results, right, strict=True) if ok for w in r.words]
    labels = np.array([1000 * word["start"] for entry in entries for word in entry["words"]])
    error = np.abs(np.array(starts, float) - labels[owners])
    assert error.mean() <= 115


def test_words_are_written_with_what_stops_a_sentence(heard: dict[str, tuple[list[Segment], list[Result]]]) -> None:
    last = [result.said[-1] for result in heard["commonvoice"][1]]
    assert {word.language for word in last} == {"eng"}
    assert np.mean([word.text[-1] in ".?!" for word in last]) > 0.8


def test_noise_and_silence_say_nothing_that_has_no_end(tiny: whisper.WhisperEngine) -> None:
    silence = Segment("silence", np.zeros(48_000, np.int16), (), transcribe="eng")
    hiss = Segment("hiss", np.random.default_rng(0).normal(0, 300, 160_000).astype(np.int16), (), transcribe="eng")
    quiet, noisy = tiny.align([silence, hiss])
    assert quiet == Result(())
    assert len(noisy.said) < 20


def test_a_word_that_is_heard_has_a_score(heard: dict[str, tuple[list[Segment], list[Result]]]) -> None:
    scores = [word.score for _, results in heard.values() for result in results for word in result.words]
    assert 0.6 < np.mean(scores) <= 1
    assert isinstance(heard["ae"][1][0].said[0], Word)
