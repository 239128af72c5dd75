"""One transcript to one file: read, written in the format that is asked for, and put in its place whole."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align_client.chat.document import NotChatError
from align_client.export import elan, subtitles, tables, textgrid
from align_client.export.transcript import read
from align_client.files import write_atomically
from align_client.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from align_client.export.transcript import Transcript, Written
    from align_client.files import Job
    from align_client.report import Note

    AddPhones = Callable[[Transcript], Transcript]


@dataclass(slots=True)
class Exported:
    """What became of one file.

    `left_out` are utterances without a time, `missing` words that the format cannot hold, or without the phones that
    were asked for: `with_phones` counts words that have some, None where they were not asked for. Where `error` is set
    nothing was written, nor where no utterance has a time.
    """

    source: Path
    target: Path
    total: int = 0
    utterances: int = 0
    words: int = 0
    with_phones: int | None = None
    left_out: Sequence[Note] = ()
    missing: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all of it was written."""
        return not (self.error or self.left_out or self.missing or not self.utterances)

    def __str__(self) -> str:
        if self.error:
            return f"{self.source}: failed: {self.error}"
        if not self.total:
            return f"{self.source}: there is no utterance in it, so nothing was written"
        if not self.utterances:
            hint = "find its times with `align-client align`, and export what that writes"
            return f"{self.source}: none of its {self.total} utterances has a time, so nothing was written; {hint}"
        phones = "" if self.with_phones is None else f", {self.with_phones} with phones"
        return f"{self.target}: {self.utterances} of {self.total} utterances, {self.words} words{phones}"


def export(job: Job, form: str, media_dirs: Sequence[Path] = (), add_phones: AddPhones | None = None) -> Exported:
    """Write `job.target` in the format `form`, one of `SUFFIXES`. What goes wrong is in the answer, not raised.

    With `add_phones`, which gives the words of a transcript theirs, raise what that raises but for MediaError.
    """
    exported = Exported(job.source, job.target)
    try:
        transcript = read(job)
        if add_phones is not None:
            transcript = add_phones(transcript)
    except MediaError as error:
        exported.error = f"its phones take the recording, and without --phones it needs none: {error}"
        return exported
    except NotChatError as error:
        exported.error = str(error)
        return exported
    except OSError as error:
        exported.error = f"cannot read it: {error.strerror}"
        return exported
    exported.total = len(transcript.document.utterances)
    if not transcript.utterances:
        return exported
    written = _writer(form, media_dirs)(transcript)
    try:
        write_atomically(job.target, written.data)
    except OSError as error:
        exported.error = f"cannot write {job.target}: {error.strerror}"
        return exported
    exported.utterances = len(transcript.utterances)
    words = [word for utterance in transcript.utterances for word in utterance.words]
    exported.words = len(words) - len(written.missing)
    if transcript.phones:
        exported.with_phones = sum(bool(word.phones) for word in words)
    exported.left_out = transcript.left_out
    told = {(note.line, note.column) for note in written.missing}
    phoneless = [note for note in transcript.phoneless if (note.line, note.column) not in told]
    exported.missing = sorted([*written.missing, *phoneless], key=lambda note: (note.line, note.column))
    exported.warnings = [*transcript.warnings, *written.warnings]
    return exported


def _writer(form: str, media_dirs: Sequence[Path]) -> Callable[[Transcript], Written]:
    writers: dict[str, Callable[[Transcript], Written]] = {
        "textgrid": textgrid.write,
        "eaf": functools.partial(elan.write, media_dirs=media_dirs),
        "vtt": subtitles.vtt,
        "srt": subtitles.srt,
        "csv": tables.as_csv,
        "json": tables.as_json,
    }
    return writers[form]
