"""One Locate call: a recording that is scanned as it comes, and searched for the utterances of its transcript.

Knows messages and how work is done; the search itself is the engines' affair.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from align_proto.v1 import align_pb2 as pb
from align_server import wire
from align_server.engines.engine import SAMPLE_RATE, Segment
from align_server.scheduling.work import Invalid, Work
from align_server.stream import received

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpc.aio import ServicerContext

    from align_server.engines.engine import Engine, Result, Scanning, Word
    from align_server.engines.search import Search
    from align_server.scheduling.batcher import Batcher
    from align_server.stream import Edge

    LocateContext = ServicerContext[pb.LocateRequest, pb.LocateResponse]

WINDOW_S: Final = 15  # scanned at a time
CONTEXT_S: Final = 0.3  # on both sides of a window: a frame's features reach into its neighbours
AHEAD: Final = 4  # windows on their way: what one call keeps the lanes busy with, and no more
MAX_WORDS: Final = 200_000  # of a transcript: nine hours of talk

ACCEPTED: Final = (("align-accepted", "1"),)

_SAMPLE: Final = 2  # bytes
_MS: Final = SAMPLE_RATE // 1000  # samples


class Locating:
    """Finds utterances in audio that is added front to back, at most AHEAD windows of it on their way at once."""

    def __init__(self, edge: Edge, batcher: Batcher, client: str, scanning: Scanning, deadline: float | None) -> None:
        self._edge = edge
        self._batcher = batcher
        self._client = client
        self._scanning = scanning
        self._deadline = deadline
        self._pcm = bytearray()  # from the sample `_from` on
        self._from = 0
        self._next = 0  # the first sample that no window has
        self._on_way: deque[tuple[Work, int, int]] = deque()  # with the window's first frame in it, and how many it has

    async def run(self, opened: pb.LocateOpen, context: LocateContext) -> list[pb.Place]:
        """The place of each utterance, once the recording has come. Raises Invalid and what work is refused with."""
        utterances = _utterances(opened)
        search = await asyncio.to_thread(_searching, self._batcher.engine, utterances, self._scanning)
        await context.send_initial_metadata(ACCEPTED)
        try:
            while (request := await received(context)) is not None:
                if request.HasField("open"):
                    raise Invalid("open", "a call is opened once")
                self._pcm += request.pcm
                await self._scan(search, is_whole=False)
            if len(self._pcm) % _SAMPLE:
                raise Invalid("pcm", "the recording ends within a sample of 16 bits")
            await self._scan(search, is_whole=True)
            while self._on_way:
                await self._feed(search)
        finally:
            for work, _, _ in self._on_way:
                if not work.future.cancel() and not work.future.cancelled():
                    work.future.exception()  # it has been told, by another of them
        found = await asyncio.to_thread(search.finish)
        return [
            pb.Place() if one is None else pb.Place(start_ms=one.start_ms, end_ms=one.end_ms, score=one.score)
            for one in found
        ]

    async def _scan(self, search: Search, *, is_whole: bool) -> None:
        """Send off the windows that are there with their context, or what is left of the recording."""
        window, context = WINDOW_S * SAMPLE_RATE, int(CONTEXT_S * SAMPLE_RATE)
        there = self._from + len(self._pcm) // _SAMPLE
        while self._next < there and (is_whole or self._next + window + context <= there):
            start, end = max(0, self._next - context), min(there, self._next + window + context)
            pcm = np.frombuffer(bytes(self._pcm[(start - self._from) * _SAMPLE : (end - self._from) * _SAMPLE]), "<i2")
            stop = min(there, self._next + window)
            frame = self._scanning.frame_ms * _MS
            await self._send(pcm, (self._next - start) // frame, -(-(stop - self._next) // frame))
            self._next = stop
            kept = max(0, stop - context)
            del self._pcm[: (kept - self._from) * _SAMPLE]
            self._from = kept
            while len(self._on_way) >= AHEAD:
                await self._feed(search)

    async def _send(self, pcm: np.ndarray[tuple[int], np.dtype[np.int16]], first: int, frames: int) -> None:
        segment = Segment("", pcm, (), scan=True)
        admission, cost = self._edge.admission, segment.duration_ms
        await admission.wait_unary(cost)
        work = Work(segment, self._client, self._batcher.engine.cost(cost), deadline=self._deadline)
        work.future.add_done_callback(lambda _: admission.release_unary(cost))
        try:
            self._batcher.put(work)
        except BaseException:
            work.future.cancel()
            raise
        self._on_way.append((work, first, frames))

    async def _feed(self, search: Search) -> None:
        """Search the next window that was scanned. One that the model failed on fits nothing better than anything."""
        work, first, frames = self._on_way[0]
        result: Result = await work.future
        self._on_way.popleft()
        evidence = result.evidence
        evidence = np.zeros((0, self._scanning.symbols), np.float32) if evidence is None else evidence[first:][:frames]
        lacking = frames - len(evidence)
        if lacking > 0:  # the last frame, where the audio ends within it
            evidence = np.pad(evidence, ((0, lacking), (0, 0)))
        await asyncio.to_thread(search.feed, evidence)


def _utterances(opened: pb.LocateOpen) -> list[tuple[Word, ...]]:
    count = sum(len(utterance.words) for utterance in opened.utterances)
    if not count:
        raise Invalid("open.utterances", "there is no word to look for")
    if count > MAX_WORDS:
        raise Invalid("open.utterances", f"{count} words are more than the {MAX_WORDS} allowed")
    return [wire.words(one.words, f"open.utterances[{i}].words") for i, one in enumerate(opened.utterances)]


def _searching(engine: Engine, utterances: Sequence[Sequence[Word]], scanning: Scanning) -> Search:
    from align_server.engines.search import Search  # noqa: PLC0415  imports what compiles it

    return Search([[engine.symbols(word) for word in words] for words in utterances], scanning)
