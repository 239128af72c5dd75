"""The Python SDK against a real server."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from align_client import AsyncClient, Client, MediaError, Word, WordTiming
from align_client.report import Status
from align_client.sdk.errors import DeadlineExceeded, RequestRefused, ServerUnavailable, detail
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from support import launch

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

RATE = 16_000


def test_a_recording_is_aligned_by_its_path(server: ServerProcess, examples: Path, tmp_path: Path) -> None:
    import soundfile

    samples, rate = soundfile.read(examples / "interview.mp3", frames=3 * 16_000, dtype="float32")
    soundfile.write(tmp_path / "talk.wav", samples, rate)
    with Client(server.address) as client:
        result = client.align(tmp_path / "talk.wav", ["can", "you", "tell", "me", "about", "your", "first", "job"])
        again = client.align(samples, [Word(word.text, "eng") for word in result.words], sample_rate=rate)
    assert isinstance(result.words[0], WordTiming)
    assert re.fullmatch(r"WordTiming\(text='can', start=[\d.]+, end=[\d.]+, score=0\.\d{1,4}\)", repr(result.words[0]))
    starts = [word.start for word in result.words]
    assert None not in starts
    assert starts == sorted(starts, key=float)  # type: ignore[arg-type]
    assert result.words[-1].end is not None
    assert result.words[-1].end < 3.1
    for mine, same in zip(result.words, again.words, strict=True):
        assert mine.start == pytest.approx(same.start, abs=0.011)


def test_align_chat_writes_the_file_and_reports(server: ServerProcess, examples: Path, tmp_path: Path) -> None:
    with Client(server.address) as client:
        report = client.align_chat(examples / "play.cha", tmp_path / "deep" / "play.cha")
    assert report.status is Status.ALIGNED
    assert report.words == report.words_aligned > 50
    assert b"%wor:" in (tmp_path / "deep" / "play.cha").read_bytes()


async def test_the_async_client_aligns_many_at_once(server: ServerProcess) -> None:
    noise = np.random.default_rng(0).normal(0, 2000, RATE).astype(np.int16)
    async with AsyncClient(server.address) as client:
        results = await asyncio.gather(*(client.align(noise, ["hello"], sample_rate=RATE) for _ in range(20)))
    assert len({result.words for result in results}) == 1


def test_wrong_arguments_are_told_before_anything_is_sent(server: ServerProcess, tmp_path: Path) -> None:
    with Client(server.address) as client:
        with pytest.raises(TypeError, match="sample_rate"):
            client.align(np.zeros(10, np.int16), ["hello"])
        with pytest.raises(ValueError, match="not a number at sample 1"):
            client.align(np.array([0, np.nan], np.float32), ["hello"], sample_rate=RATE)
        with pytest.raises(MediaError, match=r"none\.wav"):
            client.align(tmp_path / "none.wav", ["hello"])
        with pytest.raises(RequestRefused, match="no word"):
            client.align(np.ones(RATE, np.int16), [], sample_rate=RATE)


def test_the_timeout_is_kept(server: ServerProcess) -> None:
    started = time.monotonic()
    with Client(server.address, timeout=0.001) as client, pytest.raises(DeadlineExceeded):
        client.align(np.ones(60 * RATE, np.int16), ["hello"], sample_rate=RATE)
    assert time.monotonic() - started < 10


def test_a_bad_address_fails_at_once(room: Path) -> None:
    started = time.monotonic()
    with Client(f"unix:{room}/nobody") as client, pytest.raises(ServerUnavailable, match="nobody"):
        client.models()
    assert time.monotonic() - started < 10


async def test_a_full_server_refuses_with_a_hint_and_the_sdk_comes_back(room: Path) -> None:
    running = launch(room / "align.sock", "--max-queued-s", "600", "--lanes", "1")
    noise = np.random.default_rng(0).normal(0, 2000, 110 * RATE).astype(np.int16)
    segment = pb.Segment(pcm=noise.tobytes(), words=[pb.Word(text="hello")] * 50)
    try:
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = AlignServiceStub(channel)
            calls = [stub.Align(pb.AlignRequest(segment=segment)) for _ in range(9)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 9
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            hint = detail(error, error_details_pb2.RetryInfo)
            assert hint is not None
            assert hint.retry_delay.ToMilliseconds() > 0
            assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        async with AsyncClient(running.address) as client:
            words = [Word("hello")] * 50
            results = await asyncio.gather(*(client.align(noise, words, sample_rate=RATE) for _ in range(9)))
        assert len({result.words for result in results}) == 1
    finally:
        running.stop()
