"""Finds the recording that a transcript belongs to, without ever leaving the folders it may look in.

Knows what `@Media` may say and which file names hold sound. Does not open the recording.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from align_client.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from align_client.chat.document import Media

# In order of preference where several files bear the name: sound before video, whole before lossy.
AUDIO_EXTENSIONS = (
    ".wav", ".flac", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64",
    ".m4a", ".mp3", ".ogg", ".oga", ".opus", ".aac", ".wma", ".amr", ".mka",
)  # fmt: skip
VIDEO_EXTENSIONS = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".mts", ".3gp",
)  # fmt: skip
EXTENSIONS = AUDIO_EXTENSIONS + VIDEO_EXTENSIONS

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MARKS = {
    "missing": "the transcript marks its recording as missing",
    "notrans": "the transcript marks its recording as not transcribed",
    "unlinked": "the transcript marks its recording as not linked to it",
}


def find_media(transcript: Path, media: Media | None, media_dirs: Sequence[Path]) -> Path:
    """The recording of `transcript`, looked for beside it and then in each of `media_dirs`.

    `media` is what `@Media` says; without it the recording is named like the transcript. A name that ends
    in a known extension is taken as it is, any other is tried with each of `EXTENSIONS`, in that order of
    preference. The case of the extension and the Unicode normalisation of the name do not matter. A name may
    lead into a sub-folder, and a symbolic link may stand for the recording, as long as both stay inside
    these folders.

    Raises MediaError where the name leads elsewhere, or where no readable file is found: it says where
    was looked. A recording that is there is used even if `@Media` marks it as missing.
    """
    name = media.name if media is not None else transcript.stem
    parts = _checked(name)
    folders = list(dict.fromkeys([transcript.parent, *media_dirs]))
    allowed = [folder.resolve() for folder in folders]
    passed_over: list[str] = []
    for folder in folders:
        for entry in _candidates(folder, parts):
            problem = _problem(entry, allowed)
            if problem is None:
                return entry
            passed_over.append(f"{entry} {problem}")
    raise MediaError(name, _not_found(media, folders, passed_over, parts[-1]))


def _checked(name: str) -> tuple[str, ...]:
    """The parts of a relative name that stays below where it starts."""
    if _URL.match(name):
        raise MediaError(name, "@Media names a URL; download the recording and put it beside the transcript")
    if _ABSOLUTE.match(name):
        raise MediaError(
            name, "@Media names an absolute path; give the name alone and pass its folder as a media folder"
        )
    if _CONTROL.search(name):
        raise MediaError(repr(name), "@Media has a control character in its name; retype the header")
    parts = tuple(part for part in re.split(r"[/\\]", name) if part not in {"", "."})
    if ".." in parts:
        raise MediaError(name, "@Media leads out of its folder with '..'; give the name alone and pass its folder")
    if not parts:
        raise MediaError(name, "@Media has no name; write the recording's name without its extension")
    return parts


def _candidates(folder: Path, parts: Sequence[str]) -> Iterable[Path]:
    """Entries below `folder` that bear the name, the preferred first."""
    for part in parts[:-1]:
        same = [entry for entry in _listing(folder) if _normal(entry.name) == _normal(part)]
        if not same:
            return []
        folder = same[0]
    name = _normal(parts[-1])
    wanted = [name + known for known in EXTENSIONS]
    if _extension(name) in EXTENSIONS:
        wanted.insert(0, _with_lower_extension(name))
    found: dict[str, list[Path]] = {}
    for entry in _listing(folder):
        found.setdefault(_with_lower_extension(_normal(entry.name)), []).append(entry)
    return [entry for key in wanted for entry in found.get(key, ())]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _with_lower_extension(name: str) -> str:
    extension = _extension(name)
    return name[: len(name) - len(extension)] + extension


def _problem(entry: Path, allowed: Sequence[Path]) -> str | None:
    """Why `entry` cannot be used, or None."""
    try:
        real = entry.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):
        return "is a broken link; mend it or copy the recording there"
    if not any(real.is_relative_to(folder) for folder in allowed):
        return f"is a link that leads out of the allowed folders, to {real}; pass that folder as a media folder"
    if stat.S_ISDIR(mode):
        return "is a folder, not a recording"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    if not os.access(real, os.R_OK):
        return "cannot be read: permission denied"
    return None


def _not_found(media: Media | None, folders: Sequence[Path], passed_over: Sequence[str], name: str) -> str:
    if passed_over:
        return "; ".join(passed_over)
    what = "no recording of this name"
    if _extension(name) not in EXTENSIONS:
        what += f" with a known extension ({AUDIO_EXTENSIONS[0]} to {VIDEO_EXTENSIONS[-1]})"
    where = ", ".join(str(folder) for folder in folders)
    said = [] if media is None else [_MARKS[mark] for mark in (*media.flags, media.kind) if mark in _MARKS]
    marks = f"; {said[0]}" if said else ""
    return f"{what} in {where}{marks}; put it there or pass its folder as a media folder"
