"""From a recording to a CHAT file of what is said in it, with word times."""

from __future__ import annotations

import asyncio
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from align_client.chat.skeleton import skeleton
from align_client.files import write_atomically
from align_client.media.locate import VIDEO_EXTENSIONS
from align_client.recognition import recognise
from align_client.sdk.errors import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_client.recognition import Recording
    from align_client.sdk.async_client import AsyncClient


async def transcribe(
    client: AsyncClient,
    audio: Path,
    target: Path,
    language: str = "",
    *,
    advance: Callable[[float], object] = lambda _share: None,
) -> Recording:
    """Write the CHAT file `target` of what is said in `audio`; see `recognise`.

    Raises what that raises, RequestRefused where nothing could be transcribed, and OSError where the file cannot be
    written; then nothing is.
    """
    recording = await recognise(client, audio, language, advance=advance)
    if recording.gaps and not recording.words:
        raise RequestRefused(f"nothing of {audio} could be transcribed: {recording.gaps[0].why}")
    by = f"{Path(recording.model).name} with chatalign {importlib.metadata.version('chatalign')}"
    data = skeleton(
        recording.words,
        media=audio.stem,
        kind="video" if audio.suffix.lower() in VIDEO_EXTENSIONS else "audio",
        language=language or recording.language,
        comment=f"words, speaker and times were found by {by} and were not checked",
    )
    await asyncio.to_thread(write_atomically, target, data)
    return recording
