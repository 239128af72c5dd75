"""What to search a segment for: its words as items of a graph, and their times as its words' again.

Knows words, pronunciations and items; nothing of audio but its length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align_server.engines.engine import MissingReason, Result, Segment, WordKind, WordTiming
from align_server.engines.sphinx.features import count_frames
from align_server.engines.sphinx.graph import Item
from align_server.engines.sphinx.model import LANGUAGES, STATES
from align_server.engines.sphinx.timing import FRAME_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align_server.engines.engine import Phone
    from align_server.engines.sphinx.lexicon import Lexicon


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a segment's words became items of a graph."""

    duration_ms: int
    items: tuple[Item, ...]
    places: tuple[int | None, ...]  # for each word: its item; None for a pause
    missing: dict[int, WordTiming]  # the words that no model of sound stands behind
    pause_after: bool
    phones: bool  # whether they are asked for

    @property
    def shortest(self) -> int:
        """The fewest frames that the items can take."""
        return STATES * sum(min(map(len, item.pronunciations), default=1) for item in self.items)

    def too_short(self) -> Result:
        """The result where the items take longer than the audio."""
        needed = round(self.shortest * FRAME_MS)
        detail = f"{self.duration_ms} ms of audio for words that last {needed} ms at the very least"
        return Result((WordTiming(reason=MissingReason.AUDIO_TOO_SHORT, detail=detail),) * len(self.places))

    def result(self, times: Sequence[tuple[int, int]], scores: Mapping[int, float]) -> Result:
        """The words' times, of the items' start and end in ms and their scores. Pauses take what is between."""
        words: list[WordTiming] = []
        items = 0  # seen so far
        for i, place in enumerate(self.places):
            if place is None:  # the first of several pauses has all of the silence
                end = times[items][0] if items < len(times) else self.duration_ms
                start = times[items - 1][1] if items else 0
                words.append(WordTiming(end if i and self.places[i - 1] is None else start, end))
            else:
                items = place + 1
                words.append(self.missing.get(i) or WordTiming(*times[place], scores.get(place, 0.0)))
        return Result(tuple(words))

    def with_phones(self, result: Result, phones: Mapping[int, tuple[Phone, ...]]) -> Result:
        """The result with the phones of its words, which are given by item."""
        heard = [phones.get(place, ()) if place is not None else () for place in self.places]
        return Result(tuple(replace(word, phones=own) for word, own in zip(result.words, heard, strict=True)))


def plan(segment: Segment, lexicon: Lexicon, phones: Mapping[str, int]) -> Plan | Result:
    """What is to be searched for, or the result where no path can exist or mean anything."""
    items: list[Item] = []
    places: list[int | None] = []
    missing: dict[int, WordTiming] = {}
    pause = False
    for i, word in enumerate(segment.words):
        if word.kind is WordKind.PAUSE:
            places.append(None)
            pause = True
            continue
        pronunciations: tuple[tuple[str, ...], ...] = ()
        if word.kind is WordKind.WORD:
            spoken = word.language in {"", *LANGUAGES}
            pronunciations = lexicon.pronunciations(word.text) if spoken else ()
            if not spoken:
                detail = f"{word.text!r} is in {word.language!r}; this model knows {', '.join(LANGUAGES)}"
                missing[i] = WordTiming(reason=MissingReason.UNSUPPORTED_LANGUAGE, detail=detail)
            elif not pronunciations:
                detail = f"no pronunciation is known or can be derived for {word.text!r}"
                missing[i] = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail=detail)
        said = tuple(tuple(phones[phone] for phone in heard) for heard in pronunciations)
        places.append(len(items))
        items.append(Item(said, pause_before=pause))
        pause = False
    made = Plan(segment.duration_ms, tuple(items), tuple(places), missing, pause, segment.phones)
    return _unsearchable(segment, made) or made


def _unsearchable(segment: Segment, made: Plan) -> Result | None:
    if not any(item.pronunciations for item in made.items):
        nothing = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail="no word of this segment can be said")
        return Result(tuple(made.missing.get(i, nothing) for i in range(len(segment.words))))
    if len(segment.pcm) == 0 or count_frames(len(segment.pcm)) < made.shortest:
        return made.too_short()
    if segment.pcm.min() == segment.pcm.max():
        return Result.missing(segment, MissingReason.NO_SPEECH, f"every sample is {segment.pcm[0]}")
    return None
