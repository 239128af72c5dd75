"""Praat's TextGrid: tiers of utterances, of words and, if asked for, of phones for each speaker. Written by praatio.

Knows what Praat wants: intervals in seconds that fill each tier from 0 to the end, and never overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from praatio.utilities import textgrid_io

from align_client.export import tiers
from align_client.export.transcript import Written

if TYPE_CHECKING:
    from align_client.export.tiers import Interval
    from align_client.export.transcript import Transcript


def write(transcript: Transcript) -> Written:
    """The transcript as a TextGrid in UTF-8, in Praat's long form, up to the end of what is said last."""
    written = Written(b"")
    by_name: dict[str, list[Interval]] = {}
    for speaker in transcript.speakers:
        of_turns, of_words, of_phones = tiers.names(speaker)
        turns = [utterance for utterance in transcript.utterances if utterance.speaker == speaker]
        words = [word for utterance in turns for word in utterance.words]
        by_name[of_turns] = tiers.apart(tiers.as_bulleted(turns), written.warnings)
        by_name[of_words] = timed = tiers.apart(tiers.as_timed(words, written.missing), written.warnings)
        if transcript.phones:
            by_name[of_phones] = tiers.as_phones(timed)
    end_s = max(interval.end_ms for intervals in by_name.values() for interval in intervals) / 1000
    grid = {
        "xmin": 0.0,
        "xmax": end_s,
        "tiers": [
            {
                "class": "IntervalTier",
                "name": name,
                "xmin": 0.0,
                "xmax": end_s,
                "entries": [(i.start_ms / 1000, i.end_ms / 1000, i.label) for i in intervals],
            }
            for name, intervals in by_name.items()
        ],
    }
    written.data = textgrid_io.getTextgridAsStr(grid, "long_textgrid", includeBlankSpaces=True).encode()
    return written
