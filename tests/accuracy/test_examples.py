"""The example conversations: sound CHAT, truth that fits it, and word times near the truth from the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from align_client.chat.document import Document
from align_client.plan import collect, plan
from align_server.engines.engine import SAMPLE_RATE, Segment, Word, WordKind

if TYPE_CHECKING:
    from align_server.engines.sphinx.engine import SphinxEngine

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {"play": "play.flac", "interview": "interview.mp3"}


def truth_of(name: str) -> dict[int, list[dict[str, Any]]]:
    rows = json.loads((EXAMPLES / f"{name}.truth.json").read_text(encoding="utf-8"))
    return {row["utterance"]: row["words"] for row in rows}


def document_of(name: str) -> Document:
    return Document.parse((EXAMPLES / f"{name}.cha").read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_every_utterance_is_understood_and_its_words_are_those_of_the_truth(name: str) -> None:
    document, truth = document_of(name), truth_of(name)
    for utterance in document.utterances:
        assert utterance.problem is None
        shown = [utterance.items[i].written for i in utterance.shown]
        assert shown == [word["word"] for word in truth[utterance.index]]


@pytest.mark.parametrize("name", NAMES)
def test_true_times_lie_in_order_inside_their_bullet_and_the_recording(name: str) -> None:
    document, truth = document_of(name), truth_of(name)
    seconds = soundfile.info(EXAMPLES / NAMES[name]).duration
    before = 0.0
    for utterance in document.utterances:
        for word in truth[utterance.index]:
            assert before <= word["start"] < word["end"] <= seconds
            before = word["end"]
            if utterance.bullet is not None:
                assert utterance.bullet.start_ms / 1000 <= word["start"]
                assert word["end"] <= utterance.bullet.end_ms / 1000


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_model_finds_every_word_near_its_true_start(name: str, engine: SphinxEngine) -> None:
    document, truth = document_of(name), truth_of(name)
    pcm, _ = soundfile.read(EXAMPLES / NAMES[name], dtype="int16")
    per_ms = SAMPLE_RATE // 1000
    planned = plan(document.utterances, duration_ms=len(pcm) // per_ms).segments
    segments = [
        Segment(
            str(i),
            pcm[segment.span.start_ms * per_ms : segment.span.end_ms * per_ms],
            tuple(Word(word.text, word.language, WordKind[word.kind.name]) for word in segment.words),
        )
        for i, segment in enumerate(planned)
    ]
    errors = []
    for segment, result in zip(planned, engine.align(segments), strict=True):
        timings = [None if t.start_ms is None or t.end_ms is None else (t.start_ms, t.end_ms) for t in result.words]
        for index, times in collect(segment, timings).times.items():
            shown = document.utterances[index].shown
            for i, word in zip(shown, truth[index], strict=True):
                time = times.words[i]
                assert time is not None, f"{word['word']!r} of utterance {index} has no time"
                errors.append(abs(time.start_ms - word["start"] * 1000))
    assert len(errors) == sum(map(len, truth.values()))
    assert np.median(errors) < 20
    assert np.mean(np.array(errors) <= 100) > 0.95
