"""Which outputs are right as they are: made of the same transcript and recording, in the same way, and untouched since.

Knows what an output depends on; records.py keeps it. Reads transcripts and outputs, and of recordings where they are,
how long their files are and when they were written.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from align_client.chat.document import Media
from align_client.media.errors import MediaError
from align_client.media.locate import find_media
from align_client.report import FileReport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from align_client.files import Job
    from align_client.records import Records


@dataclass(frozen=True, slots=True)
class Recording:
    """Which recording it was, without reading it: size in bytes, time of its last change in ns."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Recording:
        """The one at that path. Raises OSError."""
        status = path.stat()
        return cls(str(path.resolve()), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Origin:
    """What an output was made of: the digest of the transcript, what it says of its recording, and which that was.

    `recording` is None where none was needed.
    """

    source: str
    media: Media | None
    recording: Recording | None


def digest(data: bytes) -> str:
    """What tells one file's bytes from another's."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Ledger:
    """What is known of outputs that were written before.

    The `settings` of its methods are the plain values of whatever else an output depends on, such as the model.
    """

    def __init__(self, records: Records, media_dirs: Sequence[Path]) -> None:
        self._records = records
        self._media_dirs = media_dirs

    def unchanged(self, job: Job, settings: dict[str, Any]) -> FileReport | None:
        """The report of the output that is there, if it is what would be written again."""
        try:
            target = job.target.resolve()
            record = self._records.find(target)
            if record is None or record["settings"] != settings:
                return None
            source, output = digest(job.source.read_bytes()), record["output"]
            # In place the transcript is the output. It is what was aligned where nobody has changed it since.
            if job.source.resolve() == target:
                is_same = source == output
            else:
                is_same = source == record["source"] and digest(target.read_bytes()) == output
            if not is_same or record["recording"] != self._recording(job.source, record):
                return None
            return FileReport.repeated(record["report"], job.source, job.target)
        except (OSError, MediaError, KeyError, TypeError, ValueError):
            return None  # whatever is wrong is found and told when the file is aligned

    def keep(self, report: FileReport, origin: Origin, output: bytes, settings: dict[str, Any]) -> None:
        """Record that `output` was written, all that could be aligned in it with its times."""
        if report.target is None:
            return
        recording, media = origin.recording, origin.media
        values = {
            "settings": settings,
            "source": origin.source,
            "output": digest(output),
            "media": media and [media.name, media.kind, list(media.flags)],
            "recording": recording and list(astuple(recording)),
            "report": report.as_json(),
        }
        self._records.keep(report.target.resolve(), values)

    def _recording(self, source: Path, record: dict[str, Any]) -> list[Any] | None:
        """The recording that would be taken now. Raises MediaError, or OSError."""
        if record["recording"] is None:
            return None
        media = None
        if record["media"]:
            name, kind, flags = record["media"]
            media = Media(name, kind, tuple(flags))
        return list(astuple(Recording.of(find_media(source, media, self._media_dirs))))
