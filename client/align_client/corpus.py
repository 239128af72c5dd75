"""Many CHAT files over one stream to the server: read, plan, cut, send, write back.

Stands above chat, media, plan and the SDK. One file's trouble is that file's: the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from align_client.chat.document import Document, NotChatError, UtteranceTimes
from align_client.chat.words import ItemKind
from align_client.files import Job, clear, write_atomically
from align_client.media.errors import MediaError
from align_client.media.locate import find_media
from align_client.media.stream import duration_ms
from align_client.plan import Part, Plan, Planned, collect, plan, widened
from align_client.progress import Progress, Silent
from align_client.recovery import (
    GOOD_FIT,
    LEAST_FIT,
    UTR,
    Recovered,
    fit,
    recover,
    recover_by_words,
    stretches,
)
from align_client.report import FileReport, Note, Status
from align_client.reuse import keeps_wor
from align_client.sdk.errors import AlignError, ServerUnavailable
from align_client.sdk.types import MissingReason
from align_client.sending import sent
from align_client.unchanged import Ledger, Origin, Recording, digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from align_client.chat.document import Utterance
    from align_client.records import Records
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.stream import AlignStream
    from align_client.sdk.types import SegmentTimings, WordTiming

__all__ = ["Corpus", "FileReport", "Job", "Options", "Status", "inspect"]

OF_THE_SERVER: Final = {MissingReason.ENGINE_FAILED, MissingReason.REFUSED}  # another time it may do better


@dataclass(frozen=True, slots=True)
class Options:
    """How files are aligned. `jobs` is how many are worked on at once.

    Where `force`, outputs that are right already are made again, too; where `redo`, %wor tiers that are whole. With
    `adjust_bullets` a bullet becomes as wide as its words where these reach out of it. `utr` says how utterances
    without a time are found: see UTR.
    """

    wor: bool = True
    media_dirs: tuple[Path, ...] = ()
    jobs: int = 4
    force: bool = False
    redo: bool = False
    adjust_bullets: bool = False
    utr: str = UTR[0]

    def that_matter(self) -> dict[str, Any]:
        """Those that an output depends on. Where the recording is found is seen by which it is."""
        return {name: value for name, value in asdict(self).items() if name not in {"media_dirs", "jobs", "force"}}


@dataclass(slots=True)
class _Work:
    """A file that was read, and what will be aligned from which recording."""

    document: Document
    report: FileReport
    origin: Origin
    segments: tuple[Planned, ...] = ()
    media: Path | None = None
    length_ms: int = 0  # of the recording; 0 where nobody has asked
    kept: set[int] = field(default_factory=set)  # utterances that keep their %wor
    answers: list[tuple[Planned, asyncio.Future[SegmentTimings]]] = field(default_factory=list)
    is_for_good: bool = True  # whether another run could do no better
    untimed: dict[int, str] = field(default_factory=dict)  # to be looked for, and why it has no time
    recovered: Recovered = field(default_factory=Recovered)
    lost: dict[int, str] = field(default_factory=dict)  # utterance to why the recording has no audio for it

    def utterance(self, index: int) -> Utterance:
        return self.document.utterances[index]

    def leave_alone(self, index: int, why: str) -> None:
        utterance = self.utterance(index)
        place = utterance.problem or utterance
        self.report.left_alone.append(Note(place.line, getattr(place, "column", 1), f"*{utterance.speaker}", why))
        self.report.words += _word_count(utterance)


class _Stream:
    """The stream to the server, opened when there is something to send: to open one loads the model."""

    def __init__(self, client: AsyncClient, stack: contextlib.AsyncExitStack) -> None:
        self._client = client
        self._stack = stack
        self._stream: AlignStream | None = None

    async def open(self) -> AlignStream:
        if self._stream is None:
            self._stream = self._client.stream()
            await self._stack.enter_async_context(self._stream)
        return self._stream


class Corpus:
    """Aligns files through one client; the model is the client's.

    With `records` an output that is right already is left as it is, and its report repeated.
    """

    def __init__(
        self,
        client: AsyncClient,
        options: Options,
        progress: Progress | None = None,
        records: Records | None = None,
    ) -> None:
        self._client = client
        self._options = options
        self._progress = progress or Silent()
        self._ledger = None if records is None else Ledger(records, options.media_dirs)
        self._settings: dict[str, Any] | None = None  # what outputs depend on, as far as it is known
        self._longest_ms: int | None = None

    async def run(self, jobs: Sequence[Job]) -> list[FileReport]:
        """Align every file and write each result as it is ready; one report for each job, in order.

        Raises AlignError where no server of our version answers to begin with.
        """
        self._longest_ms = int((await self._client.info()).max_segment_s * 1000) or None
        if self._ledger is not None:
            self._settings = await self._known_settings(load=True)
        places = asyncio.Semaphore(self._options.jobs)
        async with contextlib.AsyncExitStack() as stack:
            stream = _Stream(self._client, stack)

            async def one(job: Job) -> FileReport:
                async with places:
                    return await self._unchanged(job) or await self._file(job, stream)

            return list(await asyncio.gather(*(one(job) for job in jobs)))

    async def _unchanged(self, job: Job) -> FileReport | None:
        """The report of an output that is right as it is."""
        if self._ledger is None or self._settings is None or self._options.force:
            return None
        report = await asyncio.to_thread(self._ledger.unchanged, job, self._settings)
        if report is not None:
            clear(job.target.resolve().parent)  # a client may have been killed that wrote it once more
            self._progress.finished(report)
        return report

    async def _keep(self, work: _Work, data: bytes) -> None:
        """Record an output as right, unless the server was another when it was done than when it was begun."""
        if self._ledger is None or not work.is_for_good:
            return
        settings = await self._known_settings()
        if settings is not None and self._settings in (None, settings):
            await asyncio.to_thread(self._ledger.keep, work.report, work.origin, data, settings)

    async def _known_settings(self, *, load: bool = False) -> dict[str, Any] | None:
        """What outputs depend on besides their files; None where the server does not say.

        A server knows the revision of a model only once it is loaded: with `load` it is asked to.
        """
        try:
            info, models = await self._client.info(), await self._client.models()
            wanted = self._client.model
            model = next((row for row in models if row.name == wanted or (row.is_default and not wanted)), None)
            hears = next((row.name for row in models if row.transcribes), "") if self._options.utr == "whisper" else ""
            if model is not None and load and not model.revision:
                model = await self._client.load_model(model.name)
        except AlignError:
            return None
        if model is None or not model.revision:
            return None
        return {
            "model": model.name,
            "revision": model.revision,
            "longest_ms": int(info.max_segment_s * 1000),
            "versions": [importlib.metadata.version("chatalign"), info.version],
            **self._options.that_matter(),
            **({"hears": hears} if hears else {}),
        }

    async def _file(self, job: Job, stream: _Stream) -> FileReport:
        started = time.monotonic()
        report = FileReport(job.source, job.target)
        work: _Work | None = None
        data = b""
        try:
            work = await asyncio.to_thread(_prepare, report, self._options, self._longest_ms)
            await self._recover(work)
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
        report.seconds = time.monotonic() - started
        report.settle()
        if work is not None and not report.error:
            await self._keep(work, data)
        self._progress.finished(report)
        return report

    async def _recover(self, work: _Work) -> None:
        """Look for the utterances without a time, and plan anew with what was found."""
        if work.media is None or not work.untimed:
            return
        utterances = work.document.utterances
        length_ms = work.length_ms or await asyncio.to_thread(duration_ms, work.media)
        way = recover_by_words if self._options.utr == "whisper" else recover
        work.recovered = found = await way(self._client, work.media, stretches(utterances, work.untimed, length_ms))
        draft = plan(utterances, duration_ms=length_ms, longest_ms=self._longest_ms, recovered=found.places)
        work.segments = _wanted(draft, work, self._options)
        for index, why in work.untimed.items():
            if index in draft.skipped or index not in found.places:
                work.lost[index] = found.refused.get(index) or draft.skipped.get(index, why)

    async def _submit(self, work: _Work, stream: _Stream) -> None:
        """Send each segment as soon as there is room for it."""
        if work.media is None or not work.segments:
            return
        async for segment, answer in sent(work.media, work.segments, stream.open, work.lost):
            answer.add_done_callback(functools.partial(self._advance, work.report, segment))
            work.answers.append((segment, answer))

    def _advance(self, report: FileReport, segment: Planned, answer: asyncio.Future[SegmentTimings]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._progress.advanced(report.source, _seconds(segment))

    async def _result(self, work: _Work) -> bytes:
        """Wait for the answers, note what has no time, and write the rest into the document's bytes."""
        times: dict[int, UtteranceTimes] = {}
        for segment, answer in work.answers:
            timings = await answer
            work.report.audio_s += _seconds(segment)
            work.is_for_good &= not any(timing.reason in OF_THE_SERVER for timing in timings)
            collected = collect(segment, [_milliseconds(timing) for timing in timings])
            repairs = {(repair.utterance, repair.item): repair.message for repair in collected.repairs}
            for part in segment.parts:
                utterance = work.utterance(part.utterance)
                if part.utterance in work.lost or not _is_to_do(utterance, work, self._options):
                    continue
                if part.utterance in work.recovered.places and not _fits(work, part, timings):
                    continue
                found = collected.times[part.utterance]
                if self._options.adjust_bullets:
                    found = _adjusted(work, part.utterance, found)
                times[part.utterance] = found
                aligned = _note_words(work, part, found, timings, repairs)
                work.report.words += _word_count(utterance)
                work.report.words_aligned += aligned
                work.report.utterances_aligned += aligned > 0
                work.report.utterances_cached += timings.cached
        for index in work.lost.keys() - work.kept:
            work.leave_alone(index, work.lost[index])
        for notes in (work.report.left_alone, work.report.missing, work.report.repaired, work.report.warnings):
            notes.sort(key=lambda note: (note.line, note.column))
        return await asyncio.to_thread(functools.partial(work.document.with_times, times, wor=self._options.wor))


def _adjusted(work: _Work, index: int, found: UtteranceTimes) -> UtteranceTimes:
    """The times with a bullet as wide as the words; what was changed is noted."""
    utterance, wider = work.utterance(index), widened(work.document.utterances, index, found)
    if wider.bullet and utterance.bullet and wider is not found:
        spans = [f"{bullet.start_ms}_{bullet.end_ms}" for bullet in (utterance.bullet, wider.bullet)]
        why = f"its bullet was widened from {spans[0]} to {spans[1]}"
        work.report.repaired.append(Note(utterance.line, 1, f"*{utterance.speaker}", why))
    return wider


def _note_words(
    work: _Work,
    part: Part,
    found: UtteranceTimes,
    timings: Sequence[WordTiming],
    repairs: Mapping[tuple[int, int], str],
) -> int:
    """How many words of an utterance have a time; those that have none are noted, and those that were repaired."""
    aligned = 0
    for index, item in enumerate(work.utterance(part.utterance).items):
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
    return aligned


def _fits(work: _Work, part: Part, timings: Sequence[WordTiming]) -> bool:
    """Whether an utterance that was found fits there well enough; what does not is told."""
    utterance = work.utterance(part.utterance)
    said = [timings[i] for first, stop in part.items for i in range(first, stop)]
    fits = fit([timing.score for timing in said if timing.score])
    at = f"{work.recovered.places[part.utterance].start_ms / 1000:.1f} s"
    if fits < LEAST_FIT:
        work.lost[part.utterance] = f"no time bullet, and what is said at {at}, where it would have to be, is not this"
        return False
    work.report.utterances_recovered += 1
    if fits < GOOD_FIT:
        why = f"found at {at}, where its words fit badly: check that they are said there"
        work.report.warnings.append(Note(utterance.line, 1, f"*{utterance.speaker}", why))
    return True


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
                if not _is_to_do(utterance, work, options):
                    continue
                _count_aligned(report, utterance)
        for index in work.untimed:
            utterance = work.utterance(index)
            _count_aligned(report, utterance)
            why = "no time bullet: align looks for it in the recording"
            report.warnings.append(Note(utterance.line, 1, f"*{utterance.speaker}", why))
    report.settle()
    return report


def _prepare(report: FileReport, options: Options, longest_ms: int | None) -> _Work:
    """Read and plan a file. Raises OSError, NotChatError or MediaError."""
    source = report.source.read_bytes()
    document = Document.parse(source)
    work = _Work(document, report, Origin(digest(source), document.media, None))
    report.utterances = len(document.utterances)
    of_utterances = {utterance.problem for utterance in document.utterances}
    report.warnings += [Note(p.line, p.column, "", p.message) for p in document.problems if p not in of_utterances]
    draft = plan(document.utterances, duration_ms=None, longest_ms=longest_ms)
    if _wanted(draft, work, options):
        work.media = find_media(report.source, document.media, options.media_dirs)
        work.origin = replace(work.origin, recording=Recording.of(work.media))
        work.length_ms = duration_ms(work.media)
        draft = plan(document.utterances, duration_ms=work.length_ms, longest_ms=longest_ms)
        _keep_wor(work, options, work.length_ms)
        work.segments = _wanted(draft, work, options)
    for index, why in draft.skipped.items():
        utterance = work.utterance(index)
        if not _is_to_do(utterance, work, options):
            continue
        if options.utr != "off" and utterance.problem is None and utterance.claim is None:
            work.untimed[index] = why
        else:
            work.leave_alone(index, why)
    if work.untimed and work.media is None:
        try:
            work.media = find_media(report.source, document.media, options.media_dirs)
            work.origin = replace(work.origin, recording=Recording.of(work.media))
        except MediaError as error:
            for index, why in work.untimed.items():
                work.leave_alone(index, f"{why}; it cannot be looked for: {error}")
            work.untimed = {}
            work.is_for_good = False  # the recording may be put there
    return work


def _keep_wor(work: _Work, options: Options, recording_ms: int) -> None:
    """Find and count the utterances whose %wor tier stays as it is."""
    if options.redo:
        return
    for utterance in work.document.utterances:
        if _matters(utterance, work.document, options) and keeps_wor(utterance, recording_ms):
            work.kept.add(utterance.index)
            work.report.utterances_reused += 1
            work.report.words_reused += _word_count(utterance)
            _count_aligned(work.report, utterance)


def _wanted(draft: Plan, work: _Work, options: Options) -> tuple[Planned, ...]:
    """The segments that some edit needs: where no %wor is written, those of utterances without a bullet."""
    return tuple(
        segment
        for segment in draft.segments
        if any(_is_to_do(work.utterance(part.utterance), work, options) for part in segment.parts)
    )


def _is_to_do(utterance: Utterance, work: _Work, options: Options) -> bool:
    return utterance.index not in work.kept and _matters(utterance, work.document, options)


def _matters(utterance: Utterance, document: Document, options: Options) -> bool:
    return utterance.bullet is None or (options.wor and not document.is_ca)


def _count_aligned(report: FileReport, utterance: Utterance) -> None:
    """Count an utterance whose words would all get their times."""
    words = _word_count(utterance)
    report.words += words
    report.words_aligned += words
    report.utterances_aligned += 1


def _word_count(utterance: Utterance) -> int:
    return sum(item.kind is ItemKind.WORD for item in utterance.items)


def _seconds(segment: Planned) -> float:
    return (segment.span.end_ms - segment.span.start_ms) / 1000


def _milliseconds(timing: WordTiming) -> tuple[int, int] | None:
    if timing.start is None or timing.end is None:
        return None
    return round(timing.start * 1000), round(timing.end * 1000)
