"""From a recording to a CHAT file of what is said in it, with word times."""

from __future__ import annotations

import asyncio
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from align_client.chat.skeleton import skeleton
from align_client.files import write_atomically
from align_client.media.locate import VIDEO_EXTENSIONS
from align_client.recognition import WINDOW_MS, recognise
from align_client.sdk.errors import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_client.recognition import Recording
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.types import ModelInfo

SHORTEST_WINDOW_MS: Final = 10_000  # twice the overlap


@dataclass(frozen=True, slots=True)
class Transcribed:
    """What was written: the model that heard it, and what it heard."""

    model: str
    recording: Recording


async def transcribe(
    client: AsyncClient,
    audio: Path,
    target: Path,
    language: str = "",
    *,
    advance: Callable[[float], object] = lambda _share: None,
) -> Transcribed:
    """Write the CHAT file `target` of what is said in `audio`; `language` is ISO 639-3, empty for the one heard.

    The model is the client's, or the server's first that can find words. Raises RequestRefused where there is none,
    MediaError, AlignError, and OSError where the file cannot be written; then nothing is.
    """
    model = await _model(client)
    longest_ms = round(1000 * model.max_segment_s) or WINDOW_MS
    if longest_ms < SHORTEST_WINDOW_MS:
        raise RequestRefused(f"model {model.name!r} takes {longest_ms} ms at a time, too little to transcribe with")
    client.model = model.name
    recording = await recognise(client, audio, language, longest_ms=longest_ms, advance=advance)
    by = f"{Path(model.name).name} with chatalign {importlib.metadata.version('chatalign')}"
    data = skeleton(
        recording.words,
        media=audio.stem,
        kind="video" if audio.suffix.lower() in VIDEO_EXTENSIONS else "audio",
        language=language or recording.language,
        comment=f"words, speaker and times were found by {by} and were not checked",
    )
    await asyncio.to_thread(write_atomically, target, data)
    return Transcribed(model.name, recording)


async def _model(client: AsyncClient) -> ModelInfo:
    """The model to use. Raises RequestRefused."""
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
