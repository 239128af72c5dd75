"""A server under too much work, short of memory, or fed poison: bounded, honest, and everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil
import pytest

from align_client import AsyncClient, Client, MissingReason, Word
from align_client.sdk.errors import DeadlineExceeded, RequestRefused
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from align_server.service import SERVICE
from checkpoints import write_checkpoint
from support import launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support import ServerProcess

RATE = 16_000
WORDS = [Word("hello"), Word("my"), Word("world")]
MB = 2**20


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2000, int(seconds * RATE)).astype(np.int16)


def segment(seconds: float, name: str = "1") -> pb.Segment:
    return pb.Segment(id=name, pcm=noise(seconds).tobytes(), words=[pb.Word(text="hello")])


@contextlib.asynccontextmanager
async def flood(address: str, clients: int = 2, seconds: float = 10.0) -> AsyncIterator[list[int]]:
    """Streams that always have more to send; the list holds what each had answered."""
    done = [0] * clients

    async def one(number: int) -> None:
        async with AsyncClient(address) as client, client.stream() as stream:
            pcm = noise(seconds, number)
            while True:
                answer = await stream.submit(pcm, WORDS * 5)
                answer.add_done_callback(lambda _: done.__setitem__(number, done[number] + 1))

    tasks = [asyncio.create_task(one(number)) for number in range(clients)]
    try:
        while not all(done):  # noqa: ASYNC110  counted in callbacks
            await asyncio.sleep(0.01)
        yield done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def own_server(room: Path) -> Iterator[ServerProcess]:
    running = launch(room / "align.sock", "--lanes", "2")
    yield running
    running.stop()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A CTC model, computed by transformers, whose first convolution takes 6.5 MB for each second of audio in fp32."""
    return write_checkpoint(tmp_path / "tiny", channels=512, hidden=16, family="wavlm")


async def test_a_client_that_reads_no_results_is_bounded_and_costs_the_others_nothing(
    own_server: ServerProcess,
) -> None:
    async with grpc.aio.insecure_channel(own_server.address) as channel:
        deaf = AlignServiceStub(channel).AlignStream()
        await deaf.write(pb.AlignStreamRequest(open=pb.AlignStreamOpen(client="deaf")))
        granted = (await deaf.read()).granted_ms
        await deaf.write(pb.AlignStreamRequest(segments=[segment(granted / 1000)]))
        # From here on it reads nothing, and sends as if it had been granted everything it asked for.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(5):
                for i in range(100):
                    await deaf.write(pb.AlignStreamRequest(segments=[segment(10, str(i))]))
        async with AsyncClient(own_server.address) as client, client.stream() as stream:
            answers = [await stream.submit(noise(10, i), WORDS) for i in range(40)]
            await asyncio.wait_for(asyncio.gather(*answers), 60)
            info = await client.info()
        assert info.queued_s + info.granted_s + info.computing_s <= 2400
        deaf.cancel()


async def test_what_cannot_meet_its_deadline_is_refused_at_once_and_never_computed(own_server: ServerProcess) -> None:
    async with flood(own_server.address) as done, AsyncClient(own_server.address) as client:
        before, others = await client.info(), sum(done)
        async with grpc.aio.insecure_channel(own_server.address) as channel:
            stub = AlignServiceStub(channel)
            request = pb.AlignRequest(segment=segment(110))
            outcomes = [
                await asyncio.gather(*(stub.Align(request, timeout=0.1) for _ in range(4)), return_exceptions=True)
                for _ in range(10)
            ]
        codes = {outcome.code() for group in outcomes for outcome in group if isinstance(outcome, grpc.aio.AioRpcError)}
        after = await client.info()
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert after.in_vain == before.in_vain
        async with asyncio.timeout(5):  # a busy stream's answers come in lumps
            while sum(done) <= others:  # noqa: ASYNC110  another task counts
                await asyncio.sleep(0.05)
    assert after.refused.get("deadline", 0) > 0


async def test_a_call_that_comes_too_late_for_anything_is_refused_before_its_message_is_read(
    own_server: ServerProcess,
) -> None:
    async def never() -> AsyncIterator[pb.AlignRequest]:
        await asyncio.sleep(60)
        yield pb.AlignRequest()

    async with flood(own_server.address), grpc.aio.insecure_channel(own_server.address) as channel:
        align = channel.stream_unary(
            f"/{SERVICE}/Align", pb.AlignRequest.SerializeToString, pb.AlignResponse.FromString
        )
        said = []
        for _ in range(10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await align(never(), timeout=0.1, metadata=[("align-audio-ms", "110000")])
            said.append(caught.value.details() or "")
        assert any("the deadline leaves" in text for text in said), said  # the server, not the caller's own clock


async def test_a_caller_whose_deadline_can_be_met_is_served_beside_a_flood(own_server: ServerProcess) -> None:
    async with flood(own_server.address), AsyncClient(own_server.address, timeout=10) as client:
        for _ in range(5):
            result = await client.align(noise(3), ["hello", "world"], sample_rate=RATE)
            assert result.words[0].reason is None


async def test_a_timeout_that_cannot_be_kept_is_told_in_words(own_server: ServerProcess) -> None:
    async with AsyncClient(own_server.address, timeout=0.05) as client:
        with pytest.raises(DeadlineExceeded, match=r"would take about|no answer"):
            await client.align(noise(119), ["hello"] * 100, sample_rate=RATE)


async def test_calls_and_streams_broken_off_at_random_leave_nothing_held(own_server: ServerProcess) -> None:
    rng = random.Random(3)  # noqa: S311  no secret

    async def call(client: AsyncClient) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, 0.2)):
                await client.align(noise(8), ["hello"], sample_rate=RATE)

    async def stream(client: AsyncClient) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, 0.3)), client.stream() as open_stream:
                for i in range(50):
                    await open_stream.submit(noise(8, i), WORDS)

    async with AsyncClient(own_server.address) as client:
        for _ in range(4):
            await asyncio.gather(*(rng.choice([call, stream])(client) for _ in range(30)))
        deadline = time.monotonic() + 20
        while True:
            info = await client.info()
            if not (info.clients or info.queued_s or info.computing_s or info.granted_s):
                break
            assert time.monotonic() < deadline, info
            await asyncio.sleep(0.05)
        assert (await client.align(noise(2), ["hello"], sample_rate=RATE)).words[0].reason is None


async def test_times_and_scores_are_the_same_alone_and_under_load(own_server: ServerProcess) -> None:
    wanted = [(noise(seconds, seed), WORDS * seconds) for seed, seconds in enumerate((1, 2, 3, 5, 8, 13))]
    async with AsyncClient(own_server.address) as client:
        alone = [await client.align(pcm, words, sample_rate=RATE) for pcm, words in wanted]
        async with flood(own_server.address, clients=3, seconds=7.0), client.stream() as stream:
            for _ in range(3):
                answers = [await stream.submit(pcm, words) for pcm, words in wanted]
                assert [result.words for result in alone] == await asyncio.gather(*answers)


async def test_everyone_of_many_calls_at_once_is_answered_after_few_refusals(room: Path) -> None:
    running = launch(room / "align.sock", "--max-queued-s", "600")
    tries: list[int] = []
    pcm = noise(20)

    async def call(client: AsyncClient) -> None:
        result = await client.align(pcm, ["hello"] * 5, sample_rate=RATE)
        assert result.words[0].reason is None
        tries.append(1)

    try:
        async with AsyncClient(running.address) as client:
            await asyncio.wait_for(asyncio.gather(*(call(client) for _ in range(200))), 120)
            info = await client.info()
    finally:
        running.stop()
    assert len(tries) == 200
    assert 0 < info.refused["full"] <= 5 * 200


async def test_a_batch_that_runs_out_of_memory_costs_nobody_an_answer(room: Path, tiny: Path) -> None:
    name = f"ctc:{tiny}"
    flags = ("--model", name, "--model", "sphinx-en-us", "--lanes", "1", "--precision", "fp32")
    running = launch(room / "align.sock", *flags)
    try:
        process = psutil.Process(running.process.pid)
        async with AsyncClient(running.address) as client:
            short = await client.align(noise(2), ["hello", "world"], sample_rate=RATE)
            # Room for the small ones, and none for the 200 MB of 30 s.
            process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 120 * MB,) * 2)
            long = client.align(noise(35), ["hello", "world"], sample_rate=RATE)
            others = [client.align(noise(2), ["hello", "world"], sample_rate=RATE) for _ in range(5)]
            failed, *served = await asyncio.wait_for(asyncio.gather(long, *others), 60)
            english = await client.align(noise(2), ["hello"], sample_rate=RATE, model="sphinx-en-us")
    finally:
        running.stop()
    assert failed.words[0].reason is MissingReason.ENGINE_FAILED
    assert "out of memory" in failed.words[0].detail
    assert all(result.words == short.words for result in served)
    assert english.words[0].reason is None
    assert "out of memory; smaller batches from now on" in running.log


async def test_what_would_never_fit_the_memory_limit_is_refused_before_it_is_computed(room: Path, tiny: Path) -> None:
    flags = ("--model", f"ctc:{tiny}", "--lanes", "1", "--precision", "fp32")
    first = launch(room / "first.sock", *flags)
    with Client(first.address) as client:
        # What a second is expected to take is between 10 and 30 MB, and what is free up to 90 MB more than this.
        limit = client.info().memory_bytes // MB + 200
    first.stop()
    running = launch(room / "align.sock", *flags, "--memory-limit", f"{limit}M")
    try:
        with Client(running.address) as client:
            assert client.align(noise(5), ["hello", "world"], sample_rate=RATE).words[0].reason is None
            with pytest.raises(RequestRefused, match=r"needs about \d+ MB.*--memory-limit"):
                client.align(noise(39), ["hello", "world"], sample_rate=RATE)
            assert client.info().memory_bytes < limit * MB
    finally:
        running.stop()


async def test_poisoned_weights_fail_each_segment_by_itself_and_the_other_model_serves(
    room: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path / "poison")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.full_like(weights["lm_head.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    running = launch(room / "align.sock", "--model", "sphinx-en-us", "--model", f"ctc:{folder}")
    try:
        async with AsyncClient(running.address) as client:
            models = {model.name: model for model in await client.models()}
            assert models[f"ctc:{folder}"].state == "failed"
            assert (await client.align(noise(1), ["hello"], sample_rate=RATE)).words[0].reason is None
    finally:
        running.stop()
