"""Finding the utterances of a transcript in a long recording, through a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
import soundfile

from align_client import AsyncClient, Client, Word
from align_client.sdk.errors import RequestRefused
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from checkpoints import write_adapted
from support import launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from support import ServerProcess

    Audio = npt.NDArray[np.int16]

RATE = 16_000
PIECE = 15 * RATE


def hum(seconds: float, seed: int) -> Audio:
    return np.random.default_rng(seed).normal(0, 8, int(seconds * RATE)).astype(np.int16)


async def pieces(pcm: Audio, size: int = PIECE) -> AsyncIterator[Audio]:
    for start in range(0, len(pcm), size):
        yield pcm[start : start + size]


async def requests(messages: Iterable[pb.LocateRequest]) -> AsyncIterator[pb.LocateRequest]:
    for message in messages:
        yield message


def opening(words: Sequence[str], model: str = "") -> pb.LocateRequest:
    said = pb.Utterance(words=[pb.Word(text=word) for word in words])
    return pb.LocateRequest(open=pb.LocateOpen(model=model, utterances=[said]))


class Talk:
    """Read sentences with gaps between them, their words, and where each is said, in s."""

    def __init__(self, corpus: Path, client: Client, count: int) -> None:
        rows = json.loads((corpus / "speech" / "speechocean" / "manifest.json").read_text(encoding="utf-8"))[:count]
        rng = np.random.default_rng(5)
        self.words = [[Word(word, "eng") for word in row["text"].split()] for row in rows]
        self.truth: list[float] = []
        parts: list[Audio] = []
        at = 0.0
        for number, (row, words) in enumerate(zip(rows, self.words, strict=True)):
            gap = hum(rng.uniform(0.2, 5), number)
            pcm, _ = soundfile.read(corpus / "speech" / "speechocean" / row["audio"], dtype="int16")
            first = client.align(pcm, words, sample_rate=RATE).words[0].start
            assert first is not None
            self.truth.append(at + len(gap) / RATE + first)
            at += (len(gap) + len(pcm)) / RATE
            parts += [gap, pcm]
        self.pcm = np.concatenate(parts)


@pytest.mark.corpus
async def test_sentences_are_found_where_they_are_read(server: ServerProcess, corpus_dir: Path) -> None:
    with Client(server.address) as client:
        talk = await asyncio.to_thread(Talk, corpus_dir, client, 60)
    async with AsyncClient(server.address) as client:
        assert {model.name: model.locates for model in await client.models()}["sphinx-en-us"]
        places = await client.locate(pieces(talk.pcm), talk.words)
        again = await client.locate(pieces(talk.pcm, 12_345), talk.words)
        assert again == places  # however the recording comes
        kept = [i for i in range(60) if i % 10]  # a tenth is missing from the transcript
        fewer = await client.locate(pieces(talk.pcm), [talk.words[i] for i in kept])
    errors = [abs(place.start - truth) for place, truth in zip(places, talk.truth, strict=True) if place]
    assert len(errors) == 60
    assert np.median(errors) <= 0.1
    assert np.mean(np.array(errors) <= 0.5) >= 0.95
    near = [place is not None and abs(place.start - talk.truth[i]) <= 0.5 for place, i in zip(fewer, kept, strict=True)]
    assert np.mean(near) >= 0.9


async def test_what_is_wrong_with_a_call_is_said(server: ServerProcess) -> None:
    audio = pb.LocateRequest(pcm=hum(1, 1).tobytes())
    unspoken = pb.LocateRequest(open=pb.LocateOpen(utterances=[pb.Utterance(words=[pb.Word(text=" ")])]))
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = AlignServiceStub(channel)
        for messages, code, text in (
            ([], grpc.StatusCode.INVALID_ARGUMENT, "must be `open`"),
            ([audio], grpc.StatusCode.INVALID_ARGUMENT, "must be `open`"),
            ([opening([]), audio], grpc.StatusCode.INVALID_ARGUMENT, "no word"),
            ([unspoken, audio], grpc.StatusCode.INVALID_ARGUMENT, r"open.utterances[0].words[0].text"),
            ([opening(["hello"]), opening(["hello"])], grpc.StatusCode.INVALID_ARGUMENT, "opened once"),
            ([opening(["hello"]), pb.LocateRequest(pcm=b"abc")], grpc.StatusCode.INVALID_ARGUMENT, "within a sample"),
            ([opening(["hello"], "nobody")], grpc.StatusCode.NOT_FOUND, "nobody"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Locate(requests(messages))
            assert caught.value.code() is code
            assert text in (caught.value.details() or "")
        answer = await stub.Locate(requests([opening(["hello"])]))  # a recording without a sample
    assert [place.HasField("start_ms") for place in answer.places] == [False]


async def test_a_model_that_cannot_look_for_utterances_says_so(room: Path, tmp_path: Path) -> None:
    model = f"ctc:{write_adapted(tmp_path / 'many', {'eng': 'helo', 'fra': 'abc'})}"  # which adapter, without words?
    running = launch(room / "align.sock", "--model", model)
    try:
        async with AsyncClient(running.address) as client:
            assert not (await client.models())[0].locates
            for _ in range(60):  # a message on its way must not hide what the server says
                with pytest.raises(RequestRefused, match="cannot look for utterances"):
                    await client.locate(pieces(hum(2, 1), RATE // 4), [[Word("hello")]])
    finally:
        running.stop()


async def test_nothing_is_held_of_a_call_that_was_given_up(room: Path) -> None:
    running = launch(room / "align.sock")
    try:
        async with AsyncClient(running.address) as client:
            idle = await client.info()

            async def endless() -> AsyncIterator[Audio]:
                for number in itertools.count():
                    yield hum(15, number)

            calls = [asyncio.create_task(client.locate(endless(), [[Word("hello")]])) for _ in range(4)]
            await asyncio.sleep(3)
            busy = await client.info()
            assert busy.segments_done > idle.segments_done
            assert busy.queued_s + busy.computing_s <= 4 * 5 * 16  # what AHEAD allows
            result = await client.align(hum(3, 1), ["hello", "world"], sample_rate=RATE)  # others are served beside it
            assert len(result.words) == 2
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            deadline = time.monotonic() + 20
            while (info := await client.info()).queued_s or info.computing_s:
                assert time.monotonic() < deadline, info
                await asyncio.sleep(0.1)
    finally:
        running.stop()
