"""The engine's times are near those of a human labeller and of pocketsphinx, and its scores mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pocketsphinx
import pytest
import soundfile

from align_server.engines.engine import Segment, Word, WordKind
from corpora import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from align_server.engines.engine import Result
    from align_server.engines.sphinx.engine import SphinxEngine

pytestmark = pytest.mark.corpus


def segments(corpus: Path, name: str) -> list[Segment]:
    out = []
    for entry in manifest(corpus, name):
        pcm, _ = soundfile.read(corpus / "speech" / name / entry["audio"], dtype="int16")
        texts = [w["word"] for w in entry["words"]] if "words" in entry else entry["text"].split()
        words = (Word(text.strip('.,!?;:"')) for text in texts)
        out.append(Segment(entry["id"], pcm, tuple(w for w in words if w.text)))
    return out


def align(engine: SphinxEngine, batch: Sequence[Segment], size: int = 16) -> list[Result]:
    return [result for i in range(0, len(batch), size) for result in engine.align(batch[i : i + size])]


def starts(results: Sequence[Result]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if w.start_ms is None else w.start_ms for r in results for w in r.words])


def test_word_starts_are_where_a_labeller_put_them(corpus_dir: Path, engine: SphinxEngine) -> None:
    truth = np.array([1000 * w["start"] for entry in manifest(corpus_dir, "ae") for w in entry["words"]])
    error = np.abs(starts(align(engine, segments(corpus_dir, "ae"))) - truth)
    assert len(error) == 54
    assert error.mean() <= 16.5
    assert (error <= 25).mean() >= 0.76


def test_words_alone_have_the_times_that_they_have_beside_longer_ones(corpus_dir: Path, engine: SphinxEngine) -> None:
    short = segments(corpus_dir, "ae")
    longest = sorted(segments(corpus_dir, "commonvoice"), key=lambda s: -len(s.pcm))[:9]
    assert engine.align([*short, *longest])[: len(short)] == [engine.align([item])[0] for item in short]


@pytest.mark.parametrize("name", ["commonvoice", "speechocean"])
def test_every_word_of_unprepared_speech_has_a_time_in_order(corpus_dir: Path, engine: SphinxEngine, name: str) -> None:
    batch = segments(corpus_dir, name)
    for item, result in zip(batch, align(engine, batch), strict=True):
        edges = [edge for w in result.words for edge in (w.start_ms, w.end_ms)]
        assert None not in edges
        assert edges == sorted(edge for edge in edges if edge is not None)
        assert edges[-1] is not None
        assert edges[-1] <= item.duration_ms


def pocketsphinx_starts(item: Segment) -> list[float]:
    """Word starts of pocketsphinx's own two passes, in ms; a frame's start is between its neighbours' centres."""
    decoder = pocketsphinx.Decoder(samprate=16000, lm=None, loglevel="FATAL")
    decoder.set_align_text(" ".join(w.text.lower() for w in item.words))
    for second in (False, True):
        if second:
            decoder.set_alignment()
        decoder.start_utt()
        decoder.process_raw(item.pcm.tobytes(), full_utt=True)
        decoder.end_utt()
    spoken = (w for w in decoder.get_alignment() if not w.name.startswith(("<", "[")))
    return [10 * w.start + 7.8 for w in spoken]


def test_times_agree_with_those_of_pocketsphinx(corpus_dir: Path, engine: SphinxEngine) -> None:
    batch = segments(corpus_dir, "ae")
    theirs = np.concatenate([pocketsphinx_starts(item) for item in batch])
    difference = np.abs(starts(align(engine, batch)) - theirs)
    assert np.median(difference) <= 10
    assert (difference <= 50).mean() >= 0.9


def padded(item: Segment, seconds: float) -> Segment:
    """The segment between stretches of noise as loud as its quietest parts."""
    rng = np.random.default_rng(0)
    level = np.sort(np.abs(item.pcm.astype(np.float64)))[: len(item.pcm) // 5].mean() + 1
    quiet = rng.normal(0, level, (2, round(16000 * seconds))).astype(np.int16)
    return Segment(item.id, np.concatenate([quiet[0], item.pcm, quiet[1]]), item.words)


def test_silence_around_an_utterance_hardly_moves_its_words(corpus_dir: Path, engine: SphinxEngine) -> None:
    batch = segments(corpus_dir, "commonvoice")
    plain = starts(align(engine, batch))
    moved = np.abs(starts(align(engine, [padded(item, 2) for item in batch])) - 2000 - plain)
    assert (moved <= 25).mean() >= 0.93


def test_shifting_the_audio_by_part_of_a_frame_shifts_the_words(corpus_dir: Path, engine: SphinxEngine) -> None:
    batch = segments(corpus_dir, "commonvoice")[:20]
    plain = starts(align(engine, batch))
    shifted = [Segment(item.id, item.pcm[5 * 16 :], item.words) for item in batch]
    moved = np.abs(starts(align(engine, shifted)) + 5 - plain)
    assert np.median(moved) < 4


def test_a_wrong_word_scores_lower_than_the_right_one(corpus_dir: Path, engine: SphinxEngine) -> None:
    batch = [item for item in segments(corpus_dir, "commonvoice") if len(item.words) > 3]
    middle = [len(item.words) // 2 for item in batch]
    others = [batch[i - 1].words[middle[i - 1]] for i in range(len(batch))]
    swapped = [
        Segment(item.id, item.pcm, (*item.words[:k], other, *item.words[k + 1 :]))
        for item, k, other in zip(batch, middle, others, strict=True)
    ]
    right = [r.words[k].score for r, k in zip(align(engine, batch), middle, strict=True)]
    wrong = [r.words[k].score for r, k in zip(align(engine, swapped), middle, strict=True)]
    assert np.mean(right) > 1.5 * np.mean(wrong)
    assert np.mean(np.array(right) > np.array(wrong)) > 0.75


def test_an_unknown_sound_keeps_its_neighbours_in_place(corpus_dir: Path, engine: SphinxEngine) -> None:
    batch = [item for item in segments(corpus_dir, "commonvoice") if len(item.words) > 3]
    middle = [len(item.words) // 2 for item in batch]
    slot = (Word("", kind=WordKind.UNKNOWN_SOUND),)

    def edges(replacement: tuple[Word, ...]) -> npt.NDArray[np.float64]:
        changed = [
            Segment(item.id, item.pcm, (*item.words[:k], *replacement, *item.words[k + 1 :]))
            for item, k in zip(batch, middle, strict=True)
        ]
        after = len(replacement)
        found = [
            (r.words[k - 1].end_ms, r.words[k + after].start_ms)
            for r, k in zip(align(engine, changed), middle, strict=True)
        ]
        return np.array(found, float).ravel()

    whole = align(engine, batch)
    truth = np.array(
        [(r.words[k - 1].end_ms, r.words[k + 1].start_ms) for r, k in zip(whole, middle, strict=True)], float
    )
    with_slot, without = np.abs(edges(slot) - truth.ravel()), np.abs(edges(()) - truth.ravel())
    assert np.median(with_slot) <= 25
    assert (with_slot <= 25).mean() > (without <= 25).mean() + 0.1
    assert with_slot.mean() < without.mean() / 1.5


def test_a_pause_covers_the_silence_between_its_words(corpus_dir: Path, engine: SphinxEngine) -> None:
    first, second = segments(corpus_dir, "ae")[:2]
    quiet = np.random.default_rng(0).normal(0, 3, 16000).astype(np.int16)
    words = (*first.words, Word("", kind=WordKind.PAUSE), *second.words)
    (result,) = engine.align([Segment("s", np.concatenate([first.pcm, quiet, second.pcm]), words)])
    pause, start = result.words[len(first.words)], first.duration_ms
    assert pause.start_ms is not None
    assert pause.end_ms is not None
    assert start - 600 < pause.start_ms < start + 50  # the recordings are quiet at their ends
    assert start + 950 < pause.end_ms < start + 1600
