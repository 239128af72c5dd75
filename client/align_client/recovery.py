"""Times for utterances that have none: which stretches of a recording they must be in, and where in these they are.

Knows utterances, stretches and places; the server finds the places. `plan` takes them like bullets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from align_client.chat.words import ItemKind
from align_client.chat.wor import Bullet
from align_client.media.stream import Span, cut_in_thread
from align_client.sdk.types import Word, WordKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from align_client.chat.document import Utterance
    from align_client.sdk.async_client import AsyncClient

PIECE_MS: Final = 15_000  # of a recording, sent at a time
LEAST_SCORE: Final = 0.2  # of a place: nineteen of twenty that are right have more, most that are not have less
_KINDS: Final = {kind: WordKind[kind.name] for kind in ItemKind}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Utterances that follow one another, and the part of the recording that they must be in."""

    span: Span
    utterances: tuple[Utterance, ...]


@dataclass(slots=True)
class Recovered:
    """By `Utterance.index`: where utterances are said, and why others could not be found."""

    found: dict[int, Bullet] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


def stretches(utterances: Sequence[Utterance], lost: Collection[int], duration_ms: int) -> list[Stretch]:
    """Where to look for the utterances that are `lost`, by their index: between the timed ones around them.

    Those between timed ones that overlap or run backwards are in none.
    """
    made: list[Stretch] = []
    run: list[Utterance] = []
    before = 0
    for utterance in utterances:
        claim = utterance.span or utterance.bullet
        if claim is None:
            if utterance.index in lost and utterance.problem is None:
                run.append(utterance)
            continue
        if run and before < min(claim.start_ms, duration_ms):
            made.append(Stretch(Span(before, min(claim.start_ms, duration_ms)), tuple(run)))
        run = []
        before = max(before, claim.end_ms)
    if run and before < duration_ms:
        made.append(Stretch(Span(before, duration_ms), tuple(run)))
    return made


async def recover(client: AsyncClient, media: Path, wanted: Sequence[Stretch]) -> Recovered:
    """Look for the utterances of each stretch. Raises AlignError, and MediaError where the recording cannot be read."""
    recovered = Recovered()
    for stretch in wanted:
        said = [_words(utterance) for utterance in stretch.utterances]
        places = await client.locate(_pieces(media, stretch.span), said)
        for utterance, place in zip(stretch.utterances, places, strict=True):
            if place is None:
                recovered.refused[utterance.index] = "no time bullet, and it was not found in the recording"
            elif place.score < LEAST_SCORE:
                at = (stretch.span.start_ms + place.start * 1000) / 1000
                recovered.refused[utterance.index] = (
                    f"no time bullet, and what is said at {at:.1f} s, where it would have to be, does not fit its words "
                    f"({place.score:.2f}; {LEAST_SCORE} is the least)"
                )
            else:
                start, end = (stretch.span.start_ms + round(1000 * time) for time in (place.start, place.end))
                recovered.found[utterance.index] = Bullet(start, max(end, start + 1))
    return recovered


def _words(utterance: Utterance) -> list[Word]:
    return [
        Word(text, item.language, _KINDS[item.kind])
        for item in utterance.items
        for text in item.spoken
        if item.kind is ItemKind.WORD
    ]


async def _pieces(media: Path, span: Span) -> AsyncIterator[npt.NDArray[np.int16]]:
    starts = range(span.start_ms, span.end_ms, PIECE_MS)
    async for piece in cut_in_thread(media, [Span(at, min(at + PIECE_MS, span.end_ms)) for at in starts]):
        yield piece.pcm
