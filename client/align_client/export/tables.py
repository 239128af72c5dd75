"""CSV and JSON for programs: every utterance that has a time, and every word of its %wor. docs/export.md is the schema.

Times are seconds with three decimals. A word without a time is kept, with an empty field or null.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final

from align_client.export.transcript import Written

if TYPE_CHECKING:
    from align_client.chat.wor import WordTime
    from align_client.export.transcript import Phone, SaidWord, Transcript

JSON_VERSION: Final = 1
COLUMNS: Final = ("file", "speaker", "utterance", "utterance_start", "utterance_end", "word", "start", "end")


def as_csv(transcript: Transcript) -> Written:
    """One row for each word, in the order of the file; an utterance without words has one row without a word."""
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    for u in transcript.utterances:
        turn = (transcript.source, u.speaker, u.number, _decimals(u.time.start_ms), _decimals(u.time.end_ms))
        if not u.words:
            rows.writerow((*turn, "", "", ""))
        for word in u.words:
            times = (_decimals(word.time.start_ms), _decimals(word.time.end_ms)) if word.time else ("", "")
            rows.writerow((*turn, word.text, *times))
    return Written(table.getvalue().encode())


def as_json(transcript: Transcript) -> Written:
    """The utterances in the order of the file, each with its words."""
    media = transcript.document.media
    document: dict[str, Any] = {
        "version": JSON_VERSION,
        "file": str(transcript.source),
        "media": {"name": media.name, "kind": media.kind} if media else None,
        "languages": list(transcript.document.languages),
        "utterances": [
            {
                "number": u.number,
                "line": u.line,
                "speaker": u.speaker,
                "start": u.time.start_ms / 1000,
                "end": u.time.end_ms / 1000,
                "text": u.text,
                "words": [_word(word, phones=transcript.phones) for word in u.words],
            }
            for u in transcript.utterances
        ],
    }
    return Written((json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def _word(word: SaidWord, *, phones: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"word": word.text, **_times(word.time)}
    if phones:
        value["phones"] = [{"phone": phone.symbol, **_times(phone)} for phone in word.phones]
    return value


def _times(time: WordTime | Phone | None) -> dict[str, float | None]:
    return {"start": time.start_ms / 1000 if time else None, "end": time.end_ms / 1000 if time else None}


def _decimals(ms: int) -> str:
    return f"{ms // 1000}.{ms % 1000:03d}"
