"""A busy server under a storm of single calls that leave it no time: what it computes in vain, how soon it refuses.

The calls are of gRPC itself, so that nothing is tried again; they say how much audio they bring, as the SDK does.
Callers share the processors with everybody else, so that the same calls also go to a server that only refuses.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

import processes
from align_client import Client
from align_client.sdk import wire
from align_proto.v1 import align_pb2 as pb
from align_proto.v1.align_pb2_grpc import AlignServiceStub
from clients import CLIENTS, Flood, requests
from inputs import Utterance, lasting, utterances
from rows import Row, Scale, percentile, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CALLS = 1000
DEADLINE_S = 0.05
SEGMENT_S = 15.0
PER_SECOND = 30  # as much audio as a server on two cores computes: it is asked for twice what it can do
REFUSED_MS = 5
SHARE = 0.95  # of the others' throughput without the storm
REFUSED = "refused"
OUTCOME = "deadline"  # as the server's metrics call a refusal for it
LOCAL = "Deadline Exceeded"  # what gRPC itself says where the caller's clock ran out first

Ended = tuple[str, float]  # how a call ended, and after how many seconds


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = utterances()
    turns = scale.of(1, 3)
    calls = scale.of(CALLS // 2, CALLS) // turns
    metrics = f"127.0.0.1:{processes.free_port()}"
    ended: list[Ended] = []
    calm: list[float] = []
    stormy: list[float] = []
    elsewhere: list[Ended] = []
    brought = lasting(SEGMENT_S, said)
    with (
        processes.server("--metrics", metrics) as server,
        processes.Crew(make_storm, [(server.address, brought, calls)]) as crew,
        processes.Crew(make_refuser, [()]) as refuser,
        processes.Crew(make_storm, [(refuser.turn().answers[0], brought, calls)]) as other,
        Client(server.address) as client,
        Flood(server.address, said) as flood,
    ):
        before = client.info()
        for _ in range(turns):
            calm.append(_rate(flood, lambda: time.sleep(calls / PER_SECOND)))
            rate = _rate(flood, lambda: ended.extend(_turn(crew)))
            stormy.append(rate)
        calm.append(_rate(flood, lambda: time.sleep(calls / PER_SECOND)))
        after = client.info()
        elsewhere += _turn(other)
        counted, quick = _refused(metrics)
    ratios = [storm / statistics.mean(beside) for storm, beside in zip(stormy, itertools.pairwise(calm), strict=True)]
    vain = after.in_vain - before.in_vain
    hows = Counter(how for how, _ in ended)
    about = (
        f"{len(ended)} calls of {SEGMENT_S:g} s audio with {1000 * DEADLINE_S:.0f} ms to live, {PER_SECOND} a second"
    )
    return [
        Row(f"computed in vain in a storm of {about}", str(vain), "0", vain == 0),
        Row("how these calls ended", ", ".join(f"{count} {how}" for how, count in sorted(hows.items()))),
        Row(
            "from its arrival to its refusal, as the server counts it", counted, f"at most {REFUSED_MS} ms each", quick
        ),
        Row(
            "from such a call to its refusal, as its client sees it; by a server that only refuses, at the same time",
            f"{_spread(ended)}; {_spread(elsewhere)}",
        ),
        Row(
            f"throughput of the {CLIENTS} other clients during the storm over that before and after",
            spread(ratios, 3),
            f"at least {SHARE}",
            statistics.median(ratios) >= SHARE,
        ),
    ]


def make_storm(address: str, said: Sequence[Utterance], calls: int) -> Callable[[], list[Ended]]:
    """Makes so many calls, whether those before are answered or not; answers with how each ended, and when."""
    runner = asyncio.Runner()
    bytes(16 * 2**20)  # as the SDK does before its first message: glibc then keeps the buffers of messages
    given = [pb.AlignRequest() for _ in said]
    audio_ms = [(("align-audio-ms", str(round(1000 * one.seconds))),) for one in said]
    for request, one in zip(given, requests(said), strict=True):
        wire.fill(request.segment, "", *one)

    async def storm() -> list[Ended]:
        async with grpc.aio.insecure_channel(address, [("grpc.max_send_message_length", 16 * 2**20)]) as channel:
            stub = AlignServiceStub(channel)
            await channel.channel_ready()

            async def one(number: int) -> Ended:
                started = time.perf_counter()
                how = "answered"
                try:
                    await stub.Align(
                        given[number % len(given)], timeout=DEADLINE_S, metadata=audio_ms[number % len(given)]
                    )
                except grpc.aio.AioRpcError as error:
                    how = _how(error)
                return how, time.perf_counter() - started

            started = time.perf_counter()
            tasks = []
            for number in range(calls):
                await asyncio.sleep(max(0.0, started + number / PER_SECOND - time.perf_counter()))
                tasks.append(asyncio.create_task(one(number)))
            return list(await asyncio.gather(*tasks))

    return lambda: runner.run(storm())


def make_refuser() -> Callable[[], str]:
    """Refuses every call at once, unread, in a process of its own; a turn answers with its address."""

    def refuse(_requests: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, REFUSED)

    server = grpc.server(ThreadPoolExecutor(1))
    handler: Any = grpc.stream_unary_rpc_method_handler(refuse)  # which is called before the message is there
    service = pb.DESCRIPTOR.services_by_name["AlignService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Align": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def address() -> str:
        assert server, "it stops with the last reference"
        return f"127.0.0.1:{port}"

    return address


def _spread(ended: Sequence[Ended]) -> str:
    """How long refusals took."""
    took = [1000 * seconds for how, seconds in ended if how == REFUSED]
    if not took:
        return "none was refused"
    return f"p50 {percentile(took, 50):.1f} ms, p99 {percentile(took, 99):.1f} ms, max {max(took):.1f} ms"


def _how(error: grpc.aio.AioRpcError) -> str:
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
        return error.code().name
    return "not answered in time" if LOCAL in (error.details() or "") else REFUSED


def _turn(crew: processes.Crew) -> list[Ended]:
    ended: list[Ended] = crew.turn().answers[0]
    return ended


def _rate(flood: Flood, meanwhile: Callable[[], object]) -> float:
    """Audio seconds per second that the others get done while something happens."""
    before, started = flood.audio_s(), time.perf_counter()
    meanwhile()
    return (flood.audio_s() - before) / (time.perf_counter() - started)


def _refused(metrics: str) -> tuple[str, bool]:
    """The server's own histogram of the calls that it refused for their deadline; whether all were soon enough."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    buckets: dict[float, int] = {}
    total = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("outcome") != OUTCOME:
                continue
            if sample.name == "align_request_seconds_bucket":
                buckets[float(sample.labels["le"])] = int(sample.value)
            elif sample.name == "align_request_seconds_sum":
                total = sample.value
    if not (count := buckets.get(math.inf, 0)):
        return "none", False
    within = ", ".join(
        f"{100 * number / count:.1f} % within {1000 * limit:g} ms"
        for limit, number in sorted(buckets.items())
        if limit <= DEADLINE_S
    )
    told = f"mean {1000 * total / count:.2f} ms; {within} ({count} calls)"
    return told, buckets[REFUSED_MS / 1000] == count
