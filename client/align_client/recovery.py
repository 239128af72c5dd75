"""Times for utterances that have none: which stretches of a recording they must be in, and where in these they are.

Knows utterances, stretches and places; the server finds the places. `plan` takes them like bullets.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from align_client.chat.wor import Bullet
from align_client.chat.words import ItemKind
from align_client.media.stream import Span, cut_in_thread
from align_client.sdk.errors import RequestRefused, ServerUnavailable
from align_client.sdk.retry import Backoff
from align_client.sdk.types import Word, WordKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from align_client.chat.document import Utterance
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.types import Place

UTR: Final = ("auto", "off")  # utterance timing recovery: by the model that aligns, or not at all
PIECE_MS: Final = 15_000  # of a recording, sent at a time
PATIENCE_S: Final = 60.0  # with a server that does not answer
# Of a place's score and the mean of its words' scores together. Of read sentences that were found rightly one of a
# hundred has less than the first and one of twenty less than the second; of sentences that were not said there, half
# and nine of ten.
LEAST_FIT: Final = 0.55  # below, an utterance is left without a time
GOOD_FIT: Final = 0.72  # below, it is reported as doubtful
_KINDS: Final = {kind: WordKind[kind.name] for kind in ItemKind}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Utterances that follow one another, and the part of the recording that they must be in."""

    span: Span
    utterances: tuple[Utterance, ...]


@dataclass(slots=True)
class Recovered:
    """By `Utterance.index`: where utterances are said, and why others could not be found."""

    places: dict[int, Bullet] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)  # of the places

    def fit(self, index: int, words: Sequence[float]) -> float:
        """How well an utterance fits where it was found, by its place and the scores of its words there."""
        return self.scores[index] + (sum(words) / len(words) if words else 0.0)


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
    """Look for the utterances of each stretch. Raises AlignError, and MediaError where the recording cannot be read.

    A server that went away is waited for, and asked again from the beginning of the stretch.
    """
    recovered = Recovered()
    for stretch in wanted:
        try:
            places = await _located(client, media, stretch)
        except RequestRefused as error:
            recovered.refused |= {one.index: f"no time bullet; {error}" for one in stretch.utterances}
            continue
        for utterance, place in zip(stretch.utterances, places, strict=True):
            if place is None:
                recovered.refused[utterance.index] = "no time bullet, and it was not found in the recording"
            else:
                start, end = (stretch.span.start_ms + round(1000 * time) for time in (place.start, place.end))
                recovered.places[utterance.index] = Bullet(start, max(end, start + 1))
                recovered.scores[utterance.index] = place.score
    return recovered


async def _located(client: AsyncClient, media: Path, stretch: Stretch) -> list[Place | None]:
    said = [_words(utterance) for utterance in stretch.utterances]
    backoff = Backoff(PATIENCE_S)
    while True:
        try:
            return await client.locate(_pieces(media, stretch.span), said)
        except ServerUnavailable as error:
            await asyncio.sleep(backoff.delay(error))


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
