"""Many CHAT files over one stream to the server: read, plan, cut, send, write back.

Stands above chat, media, plan and the SDK. One file's trouble is that file's: the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align_client.chat.document import Document, NotChatError, UtteranceTimes
from align_client.chat.words import ItemKind
from align_client.files import Job, write_atomically
from align_client.media.errors import MediaError
from align_client.media.locate import find_media
from align_client.media.stream import cut_in_thread, duration_ms
from align_client.plan import Plan, Planned, collect, past_end, plan
from align_client.progress import Progress, Silent
from align_client.report import FileReport, Note, Status
from align_client.sdk.errors import AlignError, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from align_client.chat.document import Utterance
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.stream import AlignStream
    from align_client.sdk.types import WordTiming

__all__ = ["Corpus", "FileReport", "Job", "Options", "Status", "inspect"]


@dataclass(frozen=True, slots=True)
class Options:
    """How files are aligned. `jobs` is how many are worked on at once."""

    wor: bool = True
    media_dirs: tuple[Path, ...] = ()
    jobs: int = 4


@dataclass(slots=True)
class _Work:
    """A file that was read, and what will be aligned from which recording."""

    document: Document
    report: FileReport
    segments: tuple[Planned, ...] = ()
    media: Path | None = None
    answers: list[tuple[Planned, asyncio.Future[tuple[WordTiming, ...]]]] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)  # utterance to why the recording has no audio for it

    def utterance(self, index: int) -> Utterance:
        return self.document.utterances[index]

    def leave_alone(self, index: int, why: str) -> None:
        utterance = self.utterance(index)
        place = utterance.problem or utterance
        self.report.left_alone.append(Note(place.line, getattr(place, "column", 1), f"*{utterance.speaker}", why))
        self.report.words += _word_count(utterance)


class Corpus:
    """Aligns files through one client; the model is the client's."""

    def __init__(self, client: AsyncClient, options: Options, progress: Progress | None = None) -> None:
        self._client = client
        self._options = options
        self._progress = progress or Silent()
        self._longest_ms: int | None = None

    async def run(self, jobs: Sequence[Job]) -> list[FileReport]:
        """Align every file and write each result as it is ready; one report for each job, in order.

        Raises AlignError where no server of our version answers to begin with.
        """
        self._longest_ms = int((await self._client.info()).max_segment_s * 1000) or None
        places = asyncio.Semaphore(self._options.jobs)
        async with self._client.stream() as stream:

            async def one(job: Job) -> FileReport:
                async with places:
                    return await self._file(job, stream)

            return list(await asyncio.gather(*(one(job) for job in jobs)))

    async def _file(self, job: Job, stream: AlignStream) -> FileReport:
        started = time.monotonic()
        report = FileReport(job.source, job.target)
        work: _Work | None = None
        try:
            work = await asyncio.to_thread(_prepare, report, self._options, self._longest_ms)
            self._progress.started(job.source, len(work.segments), sum(map(_seconds, work.segments)))
            await self._submit(work, stream)
            data = await self._result(work)
            try:
                await asyncio.to_thread(write_atomically, job.target, data, job.source)
            except OSError as error:
                report.error = f"cannot write {job.target}: {error.strerror}; nothing was lost, the source is as it was"
        except (NotChatError, MediaError) as error:
            report.error = str(error)
        except AlignError as error:
            report.error = str(error)
            report.no_server = isinstance(error, ServerUnavailable)
        except OSError as error:
            report.error = f"cannot read it: {error.strerror}"
        finally:
            for _, answer in work.answers if work else ():
                answer.cancel()
        report.settle()
        report.seconds = time.monotonic() - started
        self._progress.finished(report)
        return report

    async def _submit(self, work: _Work, stream: AlignStream) -> None:
        """Cut the recording once, front to back, and send each segment as soon as there is room for it."""
        if work.media is None:
            return
        waiting = list(reversed(work.segments))
        try:
            async for piece in cut_in_thread(work.media, [one.span for one in work.segments]):
                segment = waiting.pop()
                if piece.recording_ms is not None:
                    for part in segment.parts:
                        why = part.bullet and past_end(part.bullet, piece.recording_ms)
                        if why or not len(piece.pcm):
                            work.lost[part.utterance] = why or "the recording ends before it"
                if len(piece.pcm):
                    answer = await stream.submit(piece.pcm, segment.words)
                    answer.add_done_callback(functools.partial(self._advance, work.report, segment))
                    work.answers.append((segment, answer))
        except MediaError as error:
            # What was cut before the damage is aligned all the same.
            if not work.answers:
                raise
            for segment in waiting:
                work.lost |= {part.utterance: str(error) for part in segment.parts}

    def _advance(self, report: FileReport, segment: Planned, answer: asyncio.Future[tuple[WordTiming, ...]]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._progress.advanced(report.source, _seconds(segment))

    async def _result(self, work: _Work) -> bytes:
        """Wait for the answers, note what has no time, and write the rest into the document's bytes."""
        times: dict[int, UtteranceTimes] = {}
        for segment, answer in work.answers:
            timings = await answer
            work.report.audio_s += _seconds(segment)
            collected = collect(segment, [_milliseconds(timing) for timing in timings])
            repairs = {(repair.utterance, repair.item): repair.message for repair in collected.repairs}
            for part in segment.parts:
                utterance = work.utterance(part.utterance)
                if part.utterance in work.lost or not _matters(utterance, work.document, self._options):
                    continue
                found = times[part.utterance] = collected.times[part.utterance]
                aligned = 0
                for index, item in enumerate(utterance.items):
                    if item.kind is not ItemKind.WORD:
                        continue
                    repair = repairs.get((part.utterance, index), "")
                    if found.words[index] is not None:
                        aligned += 1
                        if repair:
                            work.report.repaired.append(Note(item.line, item.column, item.written, repair))
                    else:
                        why = next((t.why for t in timings[slice(*part.items[index])] if t.reason), repair)
                        work.report.missing.append(Note(item.line, item.column, item.written, why))
                work.report.words += _word_count(utterance)
                work.report.words_aligned += aligned
                work.report.utterances_aligned += aligned > 0
        for index, why in work.lost.items():
            work.leave_alone(index, why)
        for notes in (work.report.left_alone, work.report.missing, work.report.repaired):
            notes.sort(key=lambda note: (note.line, note.column))
        return await asyncio.to_thread(functools.partial(work.document.with_times, times, wor=self._options.wor))


def inspect(source: Path, options: Options) -> FileReport:
    """What would be aligned in a file and what not, and why; asks no server and writes nothing."""
    report = FileReport(source, None)
    try:
        work = _prepare(report, options, None)
    except (NotChatError, MediaError) as error:
        report.error = str(error)
    except OSError as error:
        report.error = f"cannot read it: {error.strerror}"
    else:
        for segment in work.segments:
            report.audio_s += _seconds(segment)
            for part in segment.parts:
                utterance = work.utterance(part.utterance)
                if not _matters(utterance, work.document, options):
                    continue
                words = _word_count(utterance)
                report.words += words
                report.words_aligned += words
                report.utterances_aligned += 1
    report.settle()
    return report


def _prepare(report: FileReport, options: Options, longest_ms: int | None) -> _Work:
    """Read and plan a file. Raises OSError, NotChatError or MediaError."""
    document = Document.parse(report.source.read_bytes())
    work = _Work(document, report)
    report.utterances = len(document.utterances)
    of_utterances = {utterance.problem for utterance in document.utterances}
    report.warnings += [Note(p.line, p.column, "", p.message) for p in document.problems if p not in of_utterances]
    draft = plan(document.utterances, duration_ms=None, longest_ms=longest_ms)
    if _wanted(draft, work, options):
        work.media = find_media(report.source, document.media, options.media_dirs)
        draft = plan(document.utterances, duration_ms=duration_ms(work.media), longest_ms=longest_ms)
        work.segments = _wanted(draft, work, options)
    for index, why in draft.skipped.items():
        if _matters(work.utterance(index), document, options):
            work.leave_alone(index, why)
    return work


def _wanted(draft: Plan, work: _Work, options: Options) -> tuple[Planned, ...]:
    """The segments that some edit needs: where no %wor is written, those of utterances without a bullet."""
    return tuple(
        segment
        for segment in draft.segments
        if any(_matters(work.utterance(part.utterance), work.document, options) for part in segment.parts)
    )


def _matters(utterance: Utterance, document: Document, options: Options) -> bool:
    return utterance.bullet is None or (options.wor and not document.is_ca)


def _word_count(utterance: Utterance) -> int:
    return sum(item.kind is ItemKind.WORD for item in utterance.items)


def _seconds(segment: Planned) -> float:
    return (segment.span.end_ms - segment.span.start_ms) / 1000


def _milliseconds(timing: WordTiming) -> tuple[int, int] | None:
    if timing.start is None or timing.end is None:
        return None
    return round(timing.start * 1000), round(timing.end * 1000)
