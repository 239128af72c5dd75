"""Times for utterances that have none: which stretches of a recording they must be in, and where in these they are.

Knows utterances, stretches and places; the server finds the places, or the words that are matched with theirs.
`plan` takes them like bullets.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from align_client.chat.speech import spoken_words
from align_client.chat.wor import Bullet
from align_client.chat.words import ItemKind
from align_client.heard import letters
from align_client.matching import match
from align_client.media.stream import Span, cut_in_thread
from align_client.recognition import recognise
from align_client.sdk.async_client import AsyncClient
from align_client.sdk.errors import RequestRefused, ServerUnavailable
from align_client.sdk.retry import Backoff
from align_client.sdk.types import Word

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from align_client.chat.document import Utterance
    from align_client.heard import Heard
    from align_client.matching import Match
    from align_client.sdk.types import Place

UTR: Final = ("auto", "whisper", "off")  # timing recovery: by the model that aligns, by words heard, not at all
PIECE_MS: Final = 15_000  # of a recording, sent at a time
PATIENCE_S: Final = 60.0  # with a server that does not answer
# Of the geometric mean of an utterance's word scores where it was found. Of read sentences that were found rightly one
# of eighty has less than the first and one of twelve less than the second; of sentences that were not said there,
# three of five and nine of ten.
LEAST_FIT: Final = 0.3
GOOD_FIT: Final = 0.38
LEAST_SCORE: Final = 0.001  # of a word: less is no worse
LEAST_HEARD: Final = 0.4  # of an utterance's letters: with less it is not looked at
MS_PER_LETTER: Final = 70  # as fast as people speak, for words that were not heard
LONGEST_PAUSE_MS: Final = 3_000  # within an utterance; words beyond it are taken for another's
FOLLOWS_MS: Final = 1_000  # behind the end of the one before: an overlap that was found later was not found
TAIL_MS: Final = 200  # behind such an utterance: it is not looked for beyond
COVER: Final = 0.5  # of what lies between the first and the last stretch: with more it is heard in one go


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


def fit(scores: Sequence[float]) -> float:
    """How well an utterance fits where it was found, by the scores of its words: one that does not fit counts most."""
    return statistics.geometric_mean(max(score, LEAST_SCORE) for score in scores) if scores else 0.0


def stretches(utterances: Sequence[Utterance], lost: Collection[int], duration_ms: int) -> list[Stretch]:
    """Where to look for the utterances that are `lost`, by their index: between the timed ones around them.

    Those between timed ones that overlap or run backwards are in none.
    """
    made: list[Stretch] = []
    run: list[Utterance] = []
    before = 0
    for utterance in utterances:
        claim = utterance.claim
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
        said = [_words(utterance) for utterance in stretch.utterances]
        try:
            places = await _located(client, functools.partial(_pieces, media, stretch.span), said)
        except RequestRefused as error:
            recovered.refused |= {one.index: f"no time bullet; {error}" for one in stretch.utterances}
            continue
        for utterance, place in zip(stretch.utterances, places, strict=True):
            if place is None:
                recovered.refused[utterance.index] = "no time bullet, and it was not found in the recording"
            else:
                start, end = (stretch.span.start_ms + round(1000 * time) for time in (place.start, place.end))
                recovered.places[utterance.index] = Bullet(start, max(end, start + 1))
    await _look_under(client, media, wanted, recovered)
    return recovered


async def _look_under(client: AsyncClient, media: Path, wanted: Sequence[Stretch], recovered: Recovered) -> None:
    """Look again for utterances that are marked as having begun while the one before went on.

    The search has found them behind it, as it goes along with the audio. Here each is looked for alone, from where the
    one before begins.
    """
    again: list[tuple[Span, Utterance]] = []
    for stretch in wanted:
        for before, utterance in itertools.pairwise(stretch.utterances):
            over, place = recovered.places.get(before.index), recovered.places.get(utterance.index)
            if over is None or place is None or not utterance.is_overlap:
                continue
            if place.start_ms < over.end_ms + FOLLOWS_MS:
                again.append((Span(over.start_ms, min(place.end_ms + TAIL_MS, stretch.span.end_ms)), utterance))
    spans = [span for span, _ in again]
    looked_for = iter(again)
    async for piece in cut_in_thread(media, spans):
        span, utterance = next(looked_for)
        try:
            (heard,) = await _located(client, functools.partial(_whole, piece.pcm), [_words(utterance)])
        except RequestRefused:  # it stays where it was found
            continue
        found = recovered.places[utterance.index]
        if heard is not None and (start_ms := span.start_ms + round(1000 * heard.start)) < found.start_ms:
            recovered.places[utterance.index] = Bullet(start_ms, found.end_ms)


async def _whole(pcm: npt.NDArray[np.int16]) -> AsyncIterator[npt.NDArray[np.int16]]:
    yield pcm


async def recover_by_words(client: AsyncClient, media: Path, wanted: Sequence[Stretch]) -> Recovered:
    """The same among the words that the server's first model that can find words hears. Raises as `recover` does."""
    recovered = Recovered()
    if not wanted:
        return recovered
    spans = [stretch.span for stretch in wanted]
    whole = Span(spans[0].start_ms, spans[-1].end_ms)
    if sum(span.end_ms - span.start_ms for span in spans) > COVER * (whole.end_ms - whole.start_ms):
        spans = [whole] * len(spans)
    heard: tuple[Heard, ...] = ()
    problem = ""
    async with AsyncClient(client.address, client.timeout) as any_model:
        for number, (stretch, span) in enumerate(zip(wanted, spans, strict=True)):
            language = _language(stretch.utterances)
            if not number or span != spans[number - 1]:
                try:
                    recording = await recognise(any_model, media, language, within=span)
                except RequestRefused as error:
                    heard, problem = (), str(error)
                else:
                    heard, problem = recording.words, next((gap.why for gap in recording.gaps), "")
            inside = [one for one in heard if stretch.span.start_ms <= one.middle_ms < stretch.span.end_ms]
            if problem and not inside:
                recovered.refused |= {one.index: f"no time bullet; {problem}" for one in stretch.utterances}
            else:
                _place(stretch, inside, language, recovered)
    return recovered


def _place(stretch: Stretch, heard: Sequence[Heard], language: str, recovered: Recovered) -> None:
    """Note where in a stretch its utterances are, by the words that were heard there."""
    spoken = [(letters(word), one) for one in heard for word in spoken_words(one.text, language)]
    said = [[letters(word.text) for word in _words(utterance)] for utterance in stretch.utterances]
    found = iter(match([word for words in said for word in words], [word for word, _ in spoken]))
    cores: list[tuple[int, _Core]] = []
    for utterance, words in zip(stretch.utterances, said, strict=True):
        core = _core(words, [next(found) for _ in words], [one for _, one in spoken])
        if core is not None and core.share >= LEAST_HEARD:
            cores.append((utterance.index, core))
    placed = dict(cores)
    before = stretch.span.start_ms
    for utterance in stretch.utterances:
        after = next((core.start_ms for index, core in cores if index > utterance.index), stretch.span.end_ms)
        core = placed.get(utterance.index)
        if core is None:
            around = f"{(before + after) / 2000:.1f} s"
            recovered.refused[utterance.index] = f"no time bullet, and its words were not heard around {around}"
            continue
        start = max(core.start_ms - MS_PER_LETTER * core.unheard_before, min(before, core.start_ms))
        end = max(min(core.end_ms + MS_PER_LETTER * core.unheard_after, after), start + 1)
        recovered.places[utterance.index] = Bullet(start, end)
        before = end


@dataclass(frozen=True, slots=True)
class _Core:
    """From an utterance's first word that was heard to its last, and how many letters were not heard around it."""

    start_ms: int
    end_ms: int
    share: float  # of its letters that were heard
    unheard_before: int
    unheard_after: int


def _core(words: Sequence[str], matches: Sequence[Match | None], heard: Sequence[Heard]) -> _Core | None:
    """Of the words that were heard those without a long pause between them that have the most letters."""
    groups: list[list[tuple[int, Match]]] = []
    for i, found in enumerate(matches):
        if found is None:
            continue
        if groups:
            last, before = groups[-1][-1]
            pause = LONGEST_PAUSE_MS + MS_PER_LETTER * sum(map(len, words[last + 1 : i]))
            if heard[found.heard].start_ms - heard[before.heard].end_ms <= pause:
                groups[-1].append((i, found))
                continue
        groups.append([(i, found)])
    if not groups:
        return None

    def worth(group: Sequence[tuple[int, Match]]) -> float:
        return sum(len(words[i]) * found.likeness for i, found in group)

    best = max(groups, key=worth)
    (first, begin), (last, finish) = best[0], best[-1]
    return _Core(
        heard[begin.heard].start_ms,
        heard[finish.heard].end_ms,
        worth(best) / sum(map(len, words)),
        sum(map(len, words[:first])),
        sum(map(len, words[last + 1 :])),
    )


def _language(utterances: Sequence[Utterance]) -> str:
    """The language of most of their words, ISO 639-3."""
    languages = Counter(word.language for utterance in utterances for word in _words(utterance))
    return max(languages, key=lambda one: languages[one], default="")


async def _located(
    client: AsyncClient, pieces: Callable[[], AsyncIterator[npt.NDArray[np.int16]]], said: Sequence[Sequence[Word]]
) -> list[Place | None]:
    backoff = Backoff(PATIENCE_S)
    while True:
        try:
            return await client.locate(pieces(), said)
        except ServerUnavailable as error:
            await asyncio.sleep(backoff.delay(error))


def _words(utterance: Utterance) -> list[Word]:
    return [Word(text, item.language) for item in utterance.items for text in item.spoken if item.kind is ItemKind.WORD]


async def _pieces(media: Path, span: Span) -> AsyncIterator[npt.NDArray[np.int16]]:
    starts = range(span.start_ms, span.end_ms, PIECE_MS)
    async for piece in cut_in_thread(media, [Span(at, min(at + PIECE_MS, span.end_ms)) for at in starts]):
        yield piece.pcm
