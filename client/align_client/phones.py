"""Phones for the words of %wor tiers: their turns are aligned again, as `align` does, and theirs fitted into its times.

Stands above plan, media and the SDK; knows no format that is exported.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from align_client.chat.wor import Bullet
from align_client.export.transcript import Phone
from align_client.heard import letters
from align_client.media.locate import find_media
from align_client.media.stream import duration_ms
from align_client.plan import past_end, plan
from align_client.report import Note
from align_client.sdk.errors import RequestRefused
from align_client.sending import sent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from align_client.chat.document import Utterance
    from align_client.chat.wor import WordTime
    from align_client.export.transcript import SaidWord, TimedUtterance, Transcript
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.stream import AlignStream
    from align_client.sdk.types import WordTiming


async def phonetic(client: AsyncClient) -> str:
    """The model that has phones: the client's; else the server's default if it has, or its first that has.

    Raises RequestRefused where there is none, and AlignError.
    """
    rows = await client.models()
    able = [row for row in rows if row.phones]
    if client.model and client.model not in {row.name for row in rows}:
        names = ", ".join(row.name for row in rows)
        raise RequestRefused(f"the server has no model {client.model!r}; it can serve {names}")
    if client.model:
        able = [row for row in able if row.name == client.model]
    if not able:
        which = f"model {client.model!r} has no" if client.model else "none of the server's models has"
        raise RequestRefused(f"{which} phones; sphinx-en-us has: start the server with that, and name it")
    return max(able, key=lambda row: row.is_default).name


async def with_phones(
    client: AsyncClient, model: str, transcript: Transcript, media_dirs: Sequence[Path] = ()
) -> Transcript:
    """The transcript with the phones of its words, and notes on those that have none.

    %wor's times stay: phones are fitted into them. Raises MediaError where there is no recording, and AlignError.
    """
    asked = {u.number - 1: u for u in transcript.utterances if any(word.time for word in u.words)}
    answers = await _aligned(client, model, transcript, media_dirs, asked) if asked else _Answers({}, {})
    notes: list[Note] = []
    utterances = []
    for u in transcript.utterances:
        words = []
        for word, found in zip(u.words, answers.of(u, transcript.document.utterances[u.number - 1]), strict=True):
            fitted = found if isinstance(found, str) else _fitted(found, word)
            if isinstance(fitted, str):
                notes.append(Note(word.line, word.column, word.text, f"no phones: {fitted}"))
                words.append(word)
            else:
                words.append(replace(word, phones=fitted))
        utterances.append(replace(u, words=tuple(words)))
    return replace(transcript, utterances=tuple(utterances), phones=True, phoneless=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Answers:
    """By `Utterance.index`: what the server found for each item, and why it was not asked."""

    found: Mapping[int, Sequence[Sequence[WordTiming]]]
    lost: Mapping[int, str]

    def of(self, timed: TimedUtterance, utterance: Utterance) -> list[Sequence[WordTiming] | str]:
        """What was found for each word of %wor, or why nothing was."""
        index = utterance.index
        if index in self.lost or index not in self.found:
            return [self.lost.get(index, "its turn has no word to align")] * len(timed.words)
        # %wor may have been written by others, or of another version of the turn.
        written = [letters(utterance.items[i].written) for i in utterance.shown]
        pairs = SequenceMatcher(None, [letters(word.text) for word in timed.words], written, autojunk=False)
        answers: list[Sequence[WordTiming] | str] = ["its turn has no such word at its place"] * len(timed.words)
        for block in pairs.get_matching_blocks():
            for step in range(block.size):
                answers[block.a + step] = self.found[index][utterance.shown[block.b + step]]
        return answers


async def _aligned(
    client: AsyncClient,
    model: str,
    transcript: Transcript,
    media_dirs: Sequence[Path],
    asked: Mapping[int, TimedUtterance],
) -> _Answers:
    """Align the utterances that are asked for, in the segments in which `align` would send them."""
    media = find_media(transcript.source, transcript.document.media, media_dirs)
    length_ms = await asyncio.to_thread(duration_ms, media)
    utterances = transcript.document.utterances
    lost: dict[int, str] = {}
    places: dict[int, Bullet] = {}  # of those whose words alone say where they are
    for index, timed in asked.items():
        if utterances[index].claim is None:
            if late := past_end(timed.time, length_ms):
                lost[index] = late
            else:
                places[index] = Bullet(timed.time.start_ms, max(timed.time.end_ms, timed.time.start_ms + 1))
    longest_ms = int((await client.info()).max_segment_s * 1000) or None
    draft = plan(utterances, duration_ms=length_ms, longest_ms=longest_ms, recovered=places)
    lost = {**draft.skipped, **lost}
    segments = [one for one in draft.segments if any(part.utterance in asked for part in one.parts)]
    found: dict[int, list[Sequence[WordTiming]]] = {}
    async with client.stream(model) as stream:

        async def opened() -> AlignStream:
            return stream

        answers = [one async for one in sent(media, segments, opened, lost, phones=True)]
        for segment, answer in answers:
            timings = await answer
            for part in segment.parts:
                found[part.utterance] = [timings[first:stop] for first, stop in part.items]
    return _Answers(found, lost)


def _fitted(said: Sequence[WordTiming], word: SaidWord) -> tuple[Phone, ...] | str:
    """The phones of a word within the time that %wor gives it, or why it has none."""
    if word.time is None:
        return "it has no time in %wor"
    if why := next((one.why for one in said if one.reason), ""):
        return why
    heard = [phone for one in said for phone in one.phones]
    if not heard:
        return "the server gave none"
    scale = _Scale(heard[0].start, heard[-1].end, word.time)
    phones = tuple(Phone(phone.symbol, scale(phone.start), scale(phone.end)) for phone in heard)
    if any(phone.end_ms <= phone.start_ms for phone in phones):
        return f"%wor gives it {word.time.end_ms - word.time.start_ms} ms, too short for its {len(phones)}"
    return phones


@dataclass(frozen=True, slots=True)
class _Scale:
    """From seconds of a segment, between the start and end that a word has there, to those that %wor gives it."""

    start: float
    end: float
    time: WordTime

    def __call__(self, seconds: float) -> int:
        share = (seconds - self.start) / max(self.end - self.start, 1e-3)
        return self.time.start_ms + round(share * (self.time.end_ms - self.time.start_ms))
