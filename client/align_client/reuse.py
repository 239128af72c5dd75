"""Which utterances keep the %wor tier that they have: those whose times a person may have corrected.

Knows utterances; nothing of segments, recordings or servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align_client.plan import REACH_MS

if TYPE_CHECKING:
    from align_client.chat.document import Utterance
    from align_client.chat.wor import WordTime


def keeps_wor(utterance: Utterance, duration_ms: int) -> bool:
    """Whether an utterance's %wor tier is whole: aligning it again could only take somebody's corrections away.

    It shows the words that would be written, all with times, in order, in a recording of that length. They lie where
    the utterance's bullet says that it is, or as near as aligned words may be: where the bullet was moved, the
    tier is of old.
    """
    claim = utterance.span
    if utterance.problem is not None or utterance.bullet is None or claim is None or not utterance.wor:
        return False
    shown = [word for word in utterance.wor if word.is_word]
    if not shown or [word.text for word in shown] != [utterance.items[i].written for i in utterance.shown]:
        return False
    times = [word.time for word in shown if word.time is not None]
    return (
        len(times) == len(shown)
        and _in_order(times)
        and max(0, claim.start_ms - REACH_MS) <= times[0].start_ms
        and times[-1].end_ms <= min(duration_ms, claim.end_ms + REACH_MS)
    )


def _in_order(times: list[WordTime]) -> bool:
    starts, ends = [time.start_ms for time in times], [time.end_ms for time in times]
    return starts == sorted(starts) and ends == sorted(ends) and all(map(int.__le__, starts, ends))
