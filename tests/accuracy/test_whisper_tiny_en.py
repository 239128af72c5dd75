"""OpenAI's tiny.en puts words where openai-whisper puts them with it, and no further from where a person did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import soundfile

from align_server.engines.engine import Result, Segment, Word, WordKind
from align_server.engines.whisper import engine as whisper
from align_server.engines.whisper.align import first_frames
from corpora import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.corpus

# Word starts in ms that `find_alignment` of openai-whisper 20250625 gave for the same file of weights and the words of
# speech/ae, each utterance's joined by spaces; torch 2.11 in fp32 on a CPU, audio padded to 30 s.
THEIRS: Final = """
0 640 940 1300 1540 1880 2180
0 460 720 1040 1320 1500 1800 2060
0 560 820 1140 1460 1720 1880 2100
0 600 960 1460 1800 2320 2700 3020
0 720 900 1260 1540 1820 2100
0 680 860 1180 1420 1640 1840 2100
0 560 820 1220 1580 1980 2320 2560
"""
THEIR_MEAN_MS: Final = 132.59  # how far these are from those labelled by hand
THEIR_WITHIN_100: Final = 0.407


def segments(corpus: Path, name: str) -> list[Segment]:
    out = []
    for entry in manifest(corpus, name):
        pcm, _ = soundfile.read(corpus / "speech" / name / entry["audio"], dtype="int16")
        texts = [w["word"] for w in entry["words"]] if "words" in entry else entry["text"].split()
        out.append(Segment(entry["id"], pcm, tuple(Word(text) for text in texts)))
    return out


def starts(results: Sequence[Result]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if w.start_ms is None else w.start_ms for r in results for w in r.words])


def labelled(corpus: Path) -> npt.NDArray[np.float64]:
    return np.array([1000 * word["start"] for entry in manifest(corpus, "ae") for word in entry["words"]])


def test_the_reference_is_as_far_from_the_labels_as_it_says(corpus_dir: Path) -> None:
    error = np.abs(np.array(THEIRS.split(), float) - labelled(corpus_dir))
    assert error.mean() == pytest.approx(THEIR_MEAN_MS, abs=0.01)
    assert (error <= 100).mean() == pytest.approx(THEIR_WITHIN_100, abs=0.001)


def test_word_starts_are_no_further_from_the_labels_than_those_of_openai(
    corpus_dir: Path, tiny: whisper.WhisperEngine
) -> None:
    error = np.abs(starts(tiny.align(segments(corpus_dir, "ae"))) - labelled(corpus_dir))
    assert len(error) == 54
    assert error.mean() <= 105 < THEIR_MEAN_MS
    assert (error <= 100).mean() >= 0.5 > THEIR_WITHIN_100


def test_with_30_s_of_context_tokens_begin_where_they_do_for_openai(
    corpus_dir: Path, tiny: whisper.WhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper, "MARGIN", 1500)
    found: list[float] = []
    steps = [tiny.prepare(item) for item in segments(corpus_dir, "ae")]
    for scored in tiny.compute([step for step in steps if not isinstance(step, Result)]):
        assert isinstance(scored, whisper._Scored)
        owners = np.array(scored.plan.owners)
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        found += (20.0 * first_frames(scored.weights, scored.plan.first)[first]).tolist()
    difference = np.abs(np.array(found) - np.array(THEIRS.split(), float))
    if tiny.precision == "fp32":
        assert difference.max() <= 20
    assert (difference <= 20).mean() >= 0.98


@pytest.mark.parametrize("tiny", ["bf16"], indirect=True)
def test_bf16_moves_hardly_a_word_by_more_than_a_frame(
    corpus_dir: Path, tiny: whisper.WhisperEngine, exact_tiny: whisper.WhisperEngine
) -> None:
    batch = [item for name in ("ae", "commonvoice", "speechocean") for item in segments(corpus_dir, name)]
    moved = np.abs(starts(tiny.align(batch)) - starts(exact_tiny.align(batch)))
    assert len(moved) > 1000
    assert (moved <= tiny.frame_ms).mean() >= 0.99


def test_every_word_of_unprepared_speech_has_a_time_in_order(corpus_dir: Path, tiny: whisper.WhisperEngine) -> None:
    batch = segments(corpus_dir, "commonvoice")
    for item, result in zip(batch, tiny.align(batch), strict=True):
        edges = [edge for w in result.words for edge in (w.start_ms, w.end_ms)]
        found = [edge for edge in edges if edge is not None]
        assert len(found) == len(edges)
        assert found == sorted(found)
        assert found[-1] <= item.duration_ms


def test_a_wrong_word_scores_lower_than_the_right_one(corpus_dir: Path, tiny: whisper.WhisperEngine) -> None:
    batch = [item for item in segments(corpus_dir, "commonvoice") if len(item.words) > 3]
    middle = [len(item.words) // 2 for item in batch]
    others = [batch[i - 1].words[middle[i - 1]] for i in range(len(batch))]
    swapped = [
        Segment(item.id, item.pcm, (*item.words[:k], other, *item.words[k + 1 :]))
        for item, k, other in zip(batch, middle, others, strict=True)
    ]
    right = np.array([r.words[k].score for r, k in zip(tiny.align(batch), middle, strict=True)])
    wrong = np.array([r.words[k].score for r, k in zip(tiny.align(swapped), middle, strict=True)])
    assert right.mean() > 2 * wrong.mean()
    assert (right > wrong).mean() > 0.8


def test_an_unknown_sound_leaves_its_neighbours_nearer_their_place_than_nothing_does(
    corpus_dir: Path, tiny: whisper.WhisperEngine
) -> None:
    batch = [item for item in segments(corpus_dir, "commonvoice") if len(item.words) > 3]
    middle = [len(item.words) // 2 for item in batch]

    def edges(replacement: tuple[Word, ...] | None) -> npt.NDArray[np.float64]:
        found = []
        for item, k in zip(batch, middle, strict=True):
            put = item.words[k : k + 1] if replacement is None else replacement
            changed = Segment(item.id, item.pcm, (*item.words[:k], *put, *item.words[k + 1 :]))
            (result,) = tiny.align([changed])
            found += [result.words[k - 1].end_ms, result.words[k + len(put)].start_ms]
        return np.array(found, float)

    whole = edges(None)
    with_slot = np.abs(edges((Word("", kind=WordKind.UNKNOWN_SOUND),)) - whole)
    without = np.abs(edges(()) - whole)
    assert np.median(with_slot) <= 40
    assert with_slot.mean() < without.mean() / 2
