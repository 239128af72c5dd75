"""Between the SDK's types and the messages of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from align_client.sdk.errors import ServerFault
from align_client.sdk.types import (
    ClientLoad,
    MissingReason,
    ModelInfo,
    Phone,
    SegmentTimings,
    ServerInfo,
    Transcript,
    Word,
    WordKind,
    WordTiming,
)
from align_proto.v1 import align_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    from google.protobuf.message import Message

SCORE_DIGITS = 4  # a float32 on the wire would show more than it knows
KINDS = {
    WordKind.WORD: pb.WORD_KIND_WORD,
    WordKind.UNKNOWN_SOUND: pb.WORD_KIND_UNKNOWN_SOUND,
    WordKind.PAUSE: pb.WORD_KIND_PAUSE,
}
REASONS = {
    pb.MISSING_REASON_UNPRONOUNCEABLE: MissingReason.UNPRONOUNCEABLE,
    pb.MISSING_REASON_UNSUPPORTED_LANGUAGE: MissingReason.UNSUPPORTED_LANGUAGE,
    pb.MISSING_REASON_AUDIO_TOO_SHORT: MissingReason.AUDIO_TOO_SHORT,
    pb.MISSING_REASON_NO_SPEECH: MissingReason.NO_SPEECH,
    pb.MISSING_REASON_ENGINE_FAILED: MissingReason.ENGINE_FAILED,
}


def fill(
    message: pb.Segment,
    segment_id: str,
    pcm: npt.NDArray[np.int16],
    words: Sequence[Word] = (),
    *,
    phones: bool = False,
) -> None:
    """Make the message that of a segment, where it stands: a message put into another is copied, audio and all."""
    describe(message, segment_id, words, phones=phones)
    message.pcm = _audio(pcm).tobytes()


def describe(
    message: pb.Segment,
    segment_id: str,
    words: Sequence[Word] = (),
    *,
    transcribe: str | None = None,
    phones: bool = False,
) -> None:
    """Say in the message all of a segment but its audio.

    With `transcribe`, a language or "" for the one that is heard, it asks for its words; with `phones` for theirs.
    """
    if transcribe is not None:
        message.transcribe.language = transcribe
        message.transcribe.SetInParent()  # it is there even where it is empty
    if phones:
        message.phones = True
    message.id = segment_id
    add_words(message, words)


def request(segments: Iterable[tuple[pb.Segment, npt.NDArray[np.int16]]]) -> bytes:
    """An AlignStreamRequest of these segments with their audio, as protobuf.dev/programming-guides/encoding has it.

    The audio is copied once. protobuf itself would copy it into the message, into a buffer that grows, and out of that.
    """
    pieces: list[bytes | memoryview] = []
    for segment, pcm in segments:
        audio = _audio(pcm).view(np.uint8).data
        head = segment.SerializeToString() + _PCM + _varint(len(audio))
        pieces += [_SEGMENTS + _varint(len(head) + len(audio)) + head, audio]
    return b"".join(pieces)


def _audio(pcm: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    return np.ascontiguousarray(pcm, "<i2")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(0x80 | number & 0x7F)
        number >>= 7
    return bytes([*found, number])


def _tag(kind: type[Message], field: str) -> bytes:
    """What comes before the length of a field of bytes or of a message."""
    return _varint(kind.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_PCM = _tag(pb.Segment, "pcm")
_SEGMENTS = _tag(pb.AlignStreamRequest, "segments")


def add_words(message: pb.Segment | pb.Utterance, words: Sequence[Word]) -> None:
    """Put words into a message that has some."""
    for word in words:
        message.words.add(text=word.text, language=word.language, kind=KINDS[word.kind])


def audio_ms(pcm: npt.NDArray[np.int16]) -> int:
    """The credit that a segment costs: milliseconds of its audio, rounded up."""
    return -(-len(pcm) // 16)


def timings(
    words: Sequence[Word | pb.Word], answers: Sequence[pb.WordTiming], *, cached: bool = False
) -> SegmentTimings:
    """The timings of a segment's words. Raises ServerFault where there is not one for each."""
    if len(answers) != len(words):
        raise ServerFault(f"the server gave {len(answers)} times for {len(words)} words")
    found = SegmentTimings(_timing(word.text, answer) for word, answer in zip(words, answers, strict=True))
    found.cached = cached
    return found


def transcript(said: Sequence[pb.Word], answers: Sequence[pb.WordTiming]) -> Transcript:
    """What was found in a segment that asked for its words. Raises ServerFault where words and times do not agree."""
    words = timings(said, answers)
    timed = tuple(word for word in words if word.reason is None)
    problem = next((word.why for word in words if word.reason is not None), "")
    return Transcript(timed, said[0].language if timed else "", problem)


def refused(words: Sequence[Word], refusal: pb.SegmentRefusal) -> SegmentTimings:
    """The timings of a segment that the server did not take."""
    detail = f"{refusal.field}: {refusal.description}" if refusal.field else refusal.description
    return SegmentTimings(WordTiming(word.text, reason=MissingReason.REFUSED, detail=detail) for word in words)


def _timing(text: str, answer: pb.WordTiming) -> WordTiming:
    if answer.HasField("start_ms") and answer.HasField("end_ms"):
        phones = tuple(Phone(one.symbol, one.start_ms / 1000, one.end_ms / 1000) for one in answer.phones)
        score = round(answer.score, SCORE_DIGITS)
        return WordTiming(text, answer.start_ms / 1000, answer.end_ms / 1000, score, phones=phones)
    return WordTiming(text, reason=REASONS.get(answer.reason, MissingReason.ENGINE_FAILED), detail=answer.detail)


def model_info(message: pb.Model) -> ModelInfo:
    """One row of the list of models."""
    return ModelInfo(
        name=message.name,
        languages=tuple(message.languages),
        licence=message.licence,
        size_bytes=message.size_bytes,
        state=pb.ModelState.Name(message.state).removeprefix("MODEL_STATE_").lower(),
        detail=message.detail,
        revision=message.revision,
        max_segment_s=message.max_segment_ms / 1000,
        is_default=message.is_default,
        transcribes=message.transcribes,
        locates=message.locates,
        phones=message.phones,
        queued_s=message.load.queued_ms / 1000,
        computing_s=message.load.computing_ms / 1000,
        rate=message.load.rate,
        batch_s=message.load.batch_ms / 1000,
        batch_bytes=message.load.batch_bytes,
    )


def server_info(address: str, message: pb.GetServerInfoResponse) -> ServerInfo:
    """What a server says of itself."""
    limits, load = message.limits, message.load
    return ServerInfo(
        address=address,
        version=message.version,
        protocol_revision=message.protocol_revision,
        pid=message.pid,
        uptime_s=message.uptime_ms / 1000,
        draining=message.draining,
        device=message.device,
        max_segment_s=limits.max_segment_ms / 1000,
        max_words=limits.max_words,
        queued_s=load.queued_ms / 1000,
        computing_s=load.computing_ms / 1000,
        granted_s=load.granted_ms / 1000,
        clients=load.clients,
        rate=load.rate,
        memory_bytes=load.memory_bytes,
        segments_done=load.segments_done,
        audio_done_s=load.audio_done_ms / 1000,
        memory_limit_bytes=load.memory_limit_bytes,
        refused=dict(load.refused),
        in_vain=load.in_vain,
        cached=load.cached,
        cache_bytes=load.cache_bytes,
        by_client=tuple(
            ClientLoad(
                client=one.client,
                model=one.model,
                unanswered_s=one.unanswered_ms / 1000,
                credit_s=one.credit_ms / 1000,
                audio_done_s=one.audio_done_ms / 1000,
            )
            for one in load.by_client
        ),
    )
