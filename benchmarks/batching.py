"""Whether a segment's times are the same alone and in a batch of 16 with longer ones, by the engine itself."""

from __future__ import annotations

from align_server.engines import registry
from align_server.engines.engine import Segment, Word
from inputs import Utterance, hand_labelled, has_corpora, utterances
from rows import Row

BATCH = 16


def measure(*, quick: bool) -> list[Row]:
    """Rows of the table; it is quick in any case."""
    del quick
    everything = utterances()
    short = hand_labelled() if has_corpora() else sorted(everything, key=lambda one: one.seconds)[:4]
    longer = sorted(everything, key=lambda one: -one.seconds)[: BATCH - 1]
    engine = registry.create(registry.DEFAULT_MODEL, "cpu")
    engine.load()
    same = 0
    for place, one in enumerate(short):
        batch = [_segment(other) for other in longer]
        batch.insert(place % BATCH, _segment(one))
        same += engine.align(batch)[place % BATCH] == engine.align([_segment(one)])[0]
    what = f"times and scores alone and in a batch of {BATCH} with longer ones"
    measured = "identical" if same == len(short) else f"differ for {len(short) - same}"
    return [Row(what, f"{measured} ({len(short)} utterances)", "identical", same == len(short))]


def _segment(utterance: Utterance) -> Segment:
    return Segment(utterance.id, utterance.pcm, tuple(Word(word, "eng") for word in utterance.words))
