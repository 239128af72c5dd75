"""WebVTT and SubRip: a cue for each utterance, with the words that %wor shows and without CHAT's other marks.

Cues stand in order of their start and may overlap. WebVTT also names the speaker and says when each word starts.
"""

from __future__ import annotations

import html
import itertools
from typing import TYPE_CHECKING

from align_client.export.transcript import Written
from align_client.report import Note

if TYPE_CHECKING:
    from align_client.chat.wor import Bullet
    from align_client.export.transcript import TimedUtterance, Transcript


def vtt(transcript: Transcript) -> Written:
    """The transcript as WebVTT in UTF-8.

    A time stamp must lie within its cue, so cues are widened to hold their words.
    """
    written = Written(b"")
    blocks = ["WEBVTT\n"]
    for utterance in sorted(transcript.utterances, key=lambda u: u.reach.start_ms):
        time = utterance.reach
        if time != utterance.time:
            why = f"words lie outside of this turn's bullet, so its cue is at {_cue(time, '.')}"
            written.warnings.append(Note(utterance.line, 1, f"*{utterance.speaker}", why))
        voice = f"<v {_escaped(utterance.speaker)}>"
        blocks.append(f"{utterance.number}\n{_cue(time, '.')}\n{voice}{_stamped(utterance, time)}</v>\n")
    written.data = "\n".join(blocks).encode()
    return written


def srt(transcript: Transcript) -> Written:
    """The transcript as SubRip in UTF-8; it has no place for speakers, so their codes begin the text."""
    ordered = sorted(transcript.utterances, key=lambda u: u.time.start_ms)
    blocks = (f"{i}\n{_cue(u.time, ',')}\n{u.speaker}: {' '.join(u.said)}\n" for i, u in enumerate(ordered, 1))
    return Written("\n".join(blocks).encode())


def _stamped(utterance: TimedUtterance, cue: Bullet) -> str:
    """The text of a cue, with a time stamp before each word that starts later than the cue and the word before it."""
    parts: list[str] = []
    latest = cue.start_ms
    for text, word in itertools.zip_longest(utterance.said, utterance.words):
        stamp = ""
        if word and word.time and latest < word.time.start_ms < cue.end_ms:
            latest = word.time.start_ms
            stamp = f"<{_clock(latest, '.')}>"
        parts.append(stamp + _escaped(text))
    return " ".join(parts)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _cue(time: Bullet, point: str) -> str:
    """Its times; a cue must not be empty."""
    return f"{_clock(time.start_ms, point)} --> {_clock(max(time.end_ms, time.start_ms + 1), point)}"


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{ms:03d}"
