"""Planned segments on their way to the server: the recording is cut once, each piece sent when there is room.

Knows plans, audio and streams; what the answers are for is its callers' affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align_client.media.errors import MediaError
from align_client.media.stream import cut_in_thread
from align_client.plan import past_end

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from align_client.plan import Planned
    from align_client.sdk.stream import AlignStream
    from align_client.sdk.types import SegmentTimings


async def sent(
    media: Path,
    segments: Sequence[Planned],
    opened: Callable[[], Awaitable[AlignStream]],
    lost: dict[int, str],
    *,
    phones: bool = False,
) -> AsyncIterator[tuple[Planned, asyncio.Future[SegmentTimings]]]:
    """Each segment as it is sent, with its answer to come. The stream is opened when there is something to send.

    Why utterances have no audio, or not all of it, goes to `lost`, by their index. Raises MediaError where nothing can
    be cut, and AlignError.
    """
    waiting = list(reversed(segments))
    has_sent = False
    try:
        async for piece in cut_in_thread(media, [one.span for one in segments]):
            segment = waiting.pop()
            if piece.recording_ms is not None:
                for part in segment.parts:
                    why = part.bullet and past_end(part.bullet, piece.recording_ms)
                    if why or not len(piece.pcm):
                        lost[part.utterance] = why or "the recording ends before it"
            if len(piece.pcm):
                answer = await (await opened()).submit(piece.pcm, segment.words, phones=phones)
                has_sent = True
                yield segment, answer
    except MediaError as error:
        # What was cut before the damage is aligned all the same.
        if not has_sent:
            raise
        for segment in waiting:
            lost |= {part.utterance: str(error) for part in segment.parts}
