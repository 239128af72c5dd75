"""Between the messages of the contract and the server's own types, one way and the other. Knows no status codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from align_proto.v1 import align_pb2 as pb
from align_server.engines.engine import MissingReason, Segment, Word, WordKind
from align_server.scheduling.residents import ModelState
from align_server.scheduling.work import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align_server.engines.engine import Result
    from align_server.scheduling.residents import ModelStatus

KINDS = {
    pb.WORD_KIND_UNSPECIFIED: WordKind.WORD,
    pb.WORD_KIND_WORD: WordKind.WORD,
    pb.WORD_KIND_UNKNOWN_SOUND: WordKind.UNKNOWN_SOUND,
    pb.WORD_KIND_PAUSE: WordKind.PAUSE,
}
SENT_KINDS = {kind: number for number, kind in KINDS.items() if number != pb.WORD_KIND_UNSPECIFIED}
REASONS = {
    MissingReason.UNPRONOUNCEABLE: pb.MISSING_REASON_UNPRONOUNCEABLE,
    MissingReason.UNSUPPORTED_LANGUAGE: pb.MISSING_REASON_UNSUPPORTED_LANGUAGE,
    MissingReason.AUDIO_TOO_SHORT: pb.MISSING_REASON_AUDIO_TOO_SHORT,
    MissingReason.NO_SPEECH: pb.MISSING_REASON_NO_SPEECH,
    MissingReason.ENGINE_FAILED: pb.MISSING_REASON_ENGINE_FAILED,
}
STATES = {
    ModelState.AVAILABLE: pb.MODEL_STATE_AVAILABLE,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.SERVING: pb.MODEL_STATE_SERVING,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}


def segment(message: pb.Segment, pcm: bytes, *, max_segment_s: float, max_words: int) -> Segment:
    """The domain's view of a segment whose audio is `pcm`: reading the field copies it. Raises Invalid."""
    if len(pcm) % 2:
        raise Invalid("segment.pcm", f"{len(pcm)} bytes are not a whole number of 16-bit samples")
    if not pcm:
        raise Invalid("segment.pcm", "there is no audio in it")
    if message.HasField("transcribe") and message.words:
        raise Invalid("segment.words", "a segment asks for its words and has some; leave out one of the two")
    if not message.words and not message.HasField("transcribe"):
        raise Invalid("segment.words", "there is no word to align")
    if len(message.words) > max_words:
        raise Invalid("segment.words", f"{len(message.words)} words are more than the {max_words} allowed")
    found_words = words(message.words, "segment.words")
    transcribe = message.transcribe.language if message.HasField("transcribe") else None
    found = Segment(message.id, np.frombuffer(pcm, dtype="<i2"), found_words, transcribe, phones=message.phones)
    limit_ms = int(max_segment_s * 1000)
    if found.duration_ms > limit_ms:
        raise Invalid("segment.pcm", f"{found.duration_ms} ms of audio is longer than the {limit_ms} ms allowed")
    return found


def words(messages: Sequence[pb.Word], field: str) -> tuple[Word, ...]:
    """The words of the field of that path. Raises Invalid."""
    found = []
    for index, word in enumerate(messages):
        kind = KINDS.get(word.kind)
        if kind is None:
            raise Invalid(f"{field}[{index}].kind", f"{word.kind} is no kind that this server knows")
        if kind is WordKind.WORD and not word.text.strip():
            raise Invalid(f"{field}[{index}].text", "a word has no text")
        found.append(Word(word.text, word.language, kind))
    return tuple(found)


def audio_ms(pcm_bytes: int) -> int:
    """Credit that this many bytes of audio cost: milliseconds, rounded up."""
    return -(-pcm_bytes // 32)


def model(row: ModelStatus) -> pb.Model:
    """One row of the list of models."""
    batcher = row.batcher
    return pb.Model(
        name=row.description.name,
        languages=row.description.languages,
        licence=row.description.licence,
        size_bytes=row.description.size_bytes,
        state=STATES[row.state],
        detail=row.detail or row.description.note,
        revision=batcher.engine.revision if batcher else "",
        max_segment_ms=int(batcher.engine.max_segment_s * 1000) if batcher else 0,
        is_default=row.is_default,
        transcribes=row.description.transcribes,
        phones=row.description.phones,
        locates=bool(batcher and batcher.engine.scanning),
        load=pb.ModelLoad(
            queued_ms=batcher.queued_ms,
            computing_ms=batcher.computing_ms,
            rate=batcher.throughput.rate,
            batch_ms=batcher.batch_ms,
            batch_bytes=int(batcher.batch_bytes),
        )
        if batcher
        else None,
    )


def said(result: Result) -> list[pb.Word]:
    """The words that were found, where they were asked for."""
    return [pb.Word(text=word.text, language=word.language, kind=SENT_KINDS[word.kind]) for word in result.said]


def timings(result: Result) -> list[pb.WordTiming]:
    """The times of a segment's words, or the reasons why there are none."""
    return [
        pb.WordTiming(start_ms=word.start_ms, end_ms=word.end_ms, score=word.score)
        if word.reason is None
        else pb.WordTiming(reason=REASONS[word.reason], detail=word.detail)
        for word in result.words
    ]


def add_phones(messages: Sequence[pb.WordTiming], result: Result) -> None:
    """Put the phones of a segment's words into the messages of their times: apart, as few ask for them."""
    for message, word in zip(messages, result.words, strict=True):
        for phone in word.phones:
            message.phones.add(symbol=phone.symbol, start_ms=phone.start_ms, end_ms=phone.end_ms)
