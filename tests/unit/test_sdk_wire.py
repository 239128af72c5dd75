"""What the SDK writes by itself is what protobuf reads."""

from __future__ import annotations

import numpy as np
import pytest

from align_client.sdk import wire
from align_client.sdk.types import Word
from align_proto.v1 import align_pb2 as pb

WORDS = [Word("she", "eng"), Word("had", "eng")]


def message(number: int, pcm: np.ndarray) -> pb.Segment:
    said = pb.Segment()
    wire.fill(said, str(number), pcm, WORDS, phones=bool(number % 2))
    return said


@pytest.mark.parametrize("lengths", [[], [0], [1], [63, 64], [8191, 8192, 40_000, 0, 1_048_576]])
def test_a_request_is_what_protobuf_makes_of_it(lengths: list[int]) -> None:
    rng = np.random.default_rng(7)
    audio = [rng.integers(-32768, 32767, length, np.int16) for length in lengths]
    segments = []
    for number in range(len(audio)):
        said = pb.Segment()
        wire.describe(said, str(number), WORDS, phones=bool(number % 2))
        segments.append((said, audio[number]))
    expected = pb.AlignStreamRequest(segments=[message(number, pcm) for number, pcm in enumerate(audio)])
    assert pb.AlignStreamRequest.FromString(wire.request(segments)) == expected


def test_audio_of_other_layouts_goes_over_the_wire_in_order() -> None:
    pcm = np.arange(-500, 500, dtype=np.int16)
    for other in (pcm[::2], pcm[::-1], pcm.astype(">i2")):
        found = pb.AlignStreamRequest.FromString(wire.request([(pb.Segment(id="1"), other)]))
        assert np.frombuffer(found.segments[0].pcm, "<i2").tolist() == other.tolist()
        assert message(1, other).pcm == found.segments[0].pcm


def test_a_segment_may_ask_for_its_words() -> None:
    for language in ("", "eng"):
        said = pb.Segment()
        wire.describe(said, "1", transcribe=language)
        found = pb.AlignStreamRequest.FromString(wire.request([(said, np.ones(3, np.int16))])).segments[0]
        assert found.HasField("transcribe")
        assert found.transcribe.language == language
