"""ELAN's EAF: a tier of utterances for each speaker, below it one of their words, and of phones. Written by pympi.

Knows what ELAN wants: annotations of a tier that never overlap, words inside their utterance and phones inside their
word (Included_In), and a link to the recording.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import pympi

from align_client.export import tiers
from align_client.export.transcript import Written
from align_client.media.errors import MediaError
from align_client.media.locate import EXTENSIONS, VIDEO_EXTENSIONS, find_media
from align_client.report import Note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from align_client.export.transcript import Transcript

TURNS: Final = "utterances"  # the types of tiers
WORDS: Final = "words"
PHONES: Final = "phones"

# ELAN's own names; of others it wants to know only whether there is a picture.
_MIME_TYPES: Final = {
    ".wav": "audio/x-wav",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
}


def write(transcript: Transcript, media_dirs: Sequence[Path] = ()) -> Written:
    """The transcript as an EAF file in UTF-8, linked to its recording, which is looked for as `align` does."""
    written = Written(b"")
    eaf = pympi.Eaf(author="chatalign")
    eaf.remove_tier("default")
    eaf.add_linguistic_type(TURNS)
    eaf.remove_linguistic_type("default-lt")
    eaf.add_linguistic_type(WORDS, constraints="Included_In")
    if transcript.phones:
        eaf.add_linguistic_type(PHONES, constraints="Included_In")
    _link(eaf, transcript, media_dirs, written)
    for speaker in transcript.speakers:
        of_turns, of_words, of_phones = tiers.names(speaker)
        eaf.add_tier(of_turns, ling=TURNS, part=speaker)
        eaf.add_tier(of_words, ling=WORDS, parent=of_turns, part=speaker)
        if transcript.phones:
            eaf.add_tier(of_phones, ling=PHONES, parent=of_words, part=speaker)
        turns = [utterance for utterance in transcript.utterances if utterance.speaker == speaker]
        words_of = {turn.line: tiers.as_timed(turn.words, written.missing) for turn in turns}
        for turn in tiers.apart(tiers.as_parents(turns, written.warnings), written.warnings):
            eaf.add_annotation(of_turns, turn.start_ms, turn.end_ms, turn.label)
            words = tiers.within(words_of[turn.line], turn, written.missing, written.warnings)
            for word in words:
                eaf.add_annotation(of_words, word.start_ms, word.end_ms, word.label)
            for phone in tiers.as_phones(words):
                eaf.add_annotation(of_phones, phone.start_ms, phone.end_ms, phone.label)
    written.data = b'<?xml version="1.0" encoding="UTF-8"?>\n' + pympi.Elan.to_string(eaf, encoding="UTF-8") + b"\n"
    return written


def _link(eaf: pympi.Eaf, transcript: Transcript, media_dirs: Sequence[Path], written: Written) -> None:
    """Link the recording; one that is not found by the name that @Media gives, which ELAN will then ask for."""
    media = transcript.document.media
    try:
        found = find_media(transcript.source, media, media_dirs).resolve()
    except MediaError as error:
        written.warnings.append(Note(0, 0, "", f"the recording is linked by its name alone: {error}"))
        name = media.name if media else transcript.source.stem
        if not name.lower().endswith(EXTENSIONS):
            name += ".mp4" if media and media.kind == "video" else ".wav"
        url, relative, extension = name, f"./{name}", PurePosixPath(name).suffix.lower()
    else:
        # As ELAN writes them: blanks and letters beyond ASCII are not encoded.
        url = f"file://{found.as_posix()}"
        relative = os.path.relpath(found, transcript.target.parent.resolve()).replace(os.sep, "/")
        relative = relative if relative.startswith("../") else f"./{relative}"
        extension = found.suffix.lower()
    kind = "video/*" if extension in VIDEO_EXTENSIONS else "audio/*"
    eaf.add_linked_file(url, relative, _MIME_TYPES.get(extension, kind))
