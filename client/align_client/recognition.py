"""From a recording to its words: windows that overlap, each transcribed by the server, and joined at their seams.

Knows audio and words with times; does not know how CHAT writes them.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from align_client.heard import Heard
from align_client.media.stream import Span, cut_in_thread, duration_ms
from align_client.sdk.errors import RequestRefused
from align_client.sdk.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.stream import AlignStream
    from align_client.sdk.types import ModelInfo, WordTiming

WINDOW_MS: Final = 30_000  # what Whisper was trained on
OVERLAP_MS: Final = 5_000
LIKE_MS: Final = 600  # two words of the same letters are one where they start within that of each other
TOUCHING_MS: Final = 80  # words may overlap by that much and still be two


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of the recording that could not be transcribed, and why."""

    span: Span
    why: str


@dataclass(frozen=True, slots=True)
class Recording:
    """What was heard in a recording, and by which model; `language` is ISO 639-3, "" where nothing was."""

    words: tuple[Heard, ...]
    language: str
    gaps: tuple[Gap, ...]
    duration_ms: int
    model: str


async def recognise(
    client: AsyncClient,
    path: Path,
    language: str = "",
    *,
    within: Span | None = None,
    advance: Callable[[float], object] = lambda _share: None,
) -> Recording:
    """Everything that is said in the recording at `path`, or `within` a part of it. `advance` is told how much is done.

    It is told from 0 to 1. `language` is ISO 639-3. Without it each window is heard in its own, and the commonest is
    the recording's; windows in another are heard once more in that one, as a short or noisy window is easily taken for
    a language that nobody speaks there. The model is the client's, or the server's first that can find words; raises
    RequestRefused where there is none, MediaError and AlignError.
    """
    model = await transcriber(client)
    longest_ms = min(round(1000 * model.max_segment_s) or WINDOW_MS, WINDOW_MS)
    if longest_ms < 2 * OVERLAP_MS:
        raise RequestRefused(f"model {model.name!r} takes {longest_ms} ms at a time, too little to transcribe with")
    listen = partial(_transcripts, partial(client.stream, model.name), path)
    whole_ms = await asyncio.to_thread(duration_ms, path)
    part = within or Span(0, whole_ms)
    spans = [
        Span(part.start_ms + one.start_ms, part.start_ms + one.end_ms)
        for one in windows(min(part.end_ms, whole_ms) - part.start_ms, longest_ms)
    ]
    found = await listen(spans, language, advance)
    if not language:
        language = commonest(found)
        again = [i for i, one in enumerate(found) if one.words and one.language != language]
        retried = await listen([spans[i] for i in again], language, lambda _share: None)
        for i, one in zip(again, retried, strict=True):
            found[i] = one
    words: list[Heard] = []
    end = part.start_ms  # of the window before
    for span, transcript in zip(spans, found, strict=True):
        words = join(
            words, [_heard(word, span) for word in transcript.words], Span(span.start_ms, max(end, span.start_ms))
        )
        end = span.end_ms
    gaps = [Gap(span, one.problem) for span, one in zip(spans, found, strict=True) if one.problem]
    return Recording(tuple(words), language if words else "", tuple(gaps), whole_ms, model.name)


def windows(whole_ms: int, longest_ms: int = WINDOW_MS) -> Iterator[Span]:
    """Stretches of at most `longest_ms` that cover a recording, each OVERLAP_MS into the one before; none if empty.

    They are of one length, but for rounding: a last one with little in it would be heard without what came before.
    """
    if whole_ms <= 0:
        return
    step = longest_ms - OVERLAP_MS
    count = max(1, -(-(whole_ms - OVERLAP_MS) // step))
    length = -(-(whole_ms + (count - 1) * OVERLAP_MS) // count)
    for i in range(count):
        start = i * (length - OVERLAP_MS)
        yield Span(start, min(start + length, whole_ms))


def join(before: Sequence[Heard], after: Sequence[Heard], overlap: Span) -> list[Heard]:
    """The words of two windows as one list; of those in the overlap, which both heard, each is there once.

    A window's words are least to be trusted at its edges: the seam is at the word nearest the middle of the overlap
    that both heard. Where they heard no word in common it is the middle itself, and then what only one of the two
    heard beside it is kept, so that no text is lost.
    """
    middle = (overlap.start_ms + overlap.end_ms) / 2
    matches = [
        (i, j)
        for i, j in _common(before, after)
        if overlap.start_ms <= before[i].middle_ms and after[j].middle_ms <= overlap.end_ms
    ]
    if matches:
        i, j = min(matches, key=lambda pair: abs(after[pair[1]].middle_ms - middle))
        return [*before[:i], *after[j:]]
    head = [word for word in before if word.middle_ms < middle]
    tail = [word for word in after if word.middle_ms >= middle]
    end = head[-1].end_ms if head else overlap.start_ms
    first = tail[0].start_ms if tail else overlap.end_ms
    only_after = [word for word in after if word.middle_ms < middle and word.start_ms >= end - TOUCHING_MS]
    only_before = [word for word in before if word.middle_ms >= middle and word.end_ms <= first + TOUCHING_MS]
    return [*head, *only_after, *only_before, *tail]


def _common(before: Sequence[Heard], after: Sequence[Heard]) -> list[tuple[int, int]]:
    """Indices of words that both have, at about the same time, in the order of both: the most such pairs there are."""
    rows = [i for i, word in enumerate(before) if after and word.end_ms > after[0].start_ms - LIKE_MS]
    columns = [j for j, word in enumerate(after) if before and word.start_ms < before[-1].end_ms + LIKE_MS]
    best: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, i in enumerate(rows):
        for b, j in enumerate(columns):
            longest = max(best.get((a - 1, b), []), best.get((a, b - 1), []), key=len)
            if _are_one(before[i], after[j]) and len(shorter := best.get((a - 1, b - 1), [])) >= len(longest):
                longest = [*shorter, (i, j)]
            best[a, b] = longest
    return best.get((len(rows) - 1, len(columns) - 1), [])


def _are_one(a: Heard, b: Heard) -> bool:
    return a.letters == b.letters != "" and abs(a.start_ms - b.start_ms) <= LIKE_MS


def commonest(transcripts: Sequence[Transcript]) -> str:
    """The language with the most words, "" where there is no word."""
    words: dict[str, int] = {}
    for one in transcripts:
        words[one.language] = words.get(one.language, 0) + len(one.words)
    language = max(words, key=lambda one: words[one], default="")
    return language if words.get(language) else ""


async def transcriber(client: AsyncClient) -> ModelInfo:
    """The model that finds words: the client's, or the server's first that can. Raises RequestRefused, AlignError."""
    rows = await client.models()
    if client.model:
        row = next((row for row in rows if row.name == client.model), None)
        if row is None:
            names = ", ".join(row.name for row in rows)
            raise RequestRefused(f"the server has no model {client.model!r}; it can serve {names}")
        if not row.transcribes:
            raise RequestRefused(f"model {row.name!r} cannot find words, only align them; a whisper: model can")
        return row
    able = [row for row in rows if row.transcribes]
    if not able:
        names = ", ".join(row.name for row in rows)
        raise RequestRefused(
            f"the server can serve {names}, none of which can find words; start it with --model whisper:... too"
        )
    return able[0]


async def _transcripts(
    begin: Callable[[], AlignStream],
    path: Path,
    spans: Sequence[Span],
    language: str,
    advance: Callable[[float], object],
) -> list[Transcript]:
    """What the server found in each stretch."""
    futures: list[asyncio.Future[Transcript]] = []
    done = itertools.count(1)
    async with begin() as stream:
        async for piece in cut_in_thread(path, spans):
            if not len(piece.pcm):
                break  # the recording is shorter than its header says
            future = await stream.transcribe(piece.pcm, language)
            future.add_done_callback(lambda _: advance(next(done) / len(spans)))
            futures.append(future)
        found = list(await asyncio.gather(*futures))
    return [*found, *[Transcript()] * (len(spans) - len(found))]


def _heard(word: WordTiming, span: Span) -> Heard:
    start, end = round(1000 * (word.start or 0.0)), round(1000 * (word.end or 0.0))
    return Heard(word.text.strip(), span.start_ms + start, span.start_ms + end, word.score)
