"""`mms-fa` with random weights in a server, in bf16, against the loop of today's tools: speed, arithmetic, memory.

The values of weights make no difference to any of these. The loop is torchaudio's own model in single precision and its
own `forced_align`, one group of up to 15 s at a time, on all cores.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import processes
from align_server.engines.ctc import bundle
from clients import CLIENTS, make_counting_stream, seconds_of
from inputs import Utterance, grouped, utterances
from rows import Row, Scale, faster, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


SEGMENT_S = 15.0
TURN_S = 360.0  # of audio in the server's turn, and a quarter of it in the loop's
SPEED = 3.0  # times the loop
SHARE = 0.65  # of the rate of matrix products
GEMM = (1600, 1024, 4096)
GEMM_S = 2.0
MEMORY = 1 / 8  # of as many processes of today's tools as there are clients
LOADED_MB = 900  # beside the weights
PEAK = 1.3  # of what is there after loading
MB = processes.MB


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    from align_server.engines.precision import INT8, multiplies_int8  # noqa: PLC0415  with torch: see random_weights

    said = grouped(SEGMENT_S, utterances())
    cores = processes.cores()
    with random_weights():
        weights_mb = _bytes_in_bf16() / MB
        portion = _about(said, scale.of(TURN_S / 2, TURN_S))
        portion = portion[: len(portion) // cores * cores]  # else one core waits for the last, a part of a short turn
        some = _about(portion, seconds_of(portion) / 4)
        ours: list[float] = []
        short: list[float] = []
        loop: list[float] = []
        with contextlib.ExitStack() as stack:
            tool = stack.enter_context(processes.Crew(make_loop, [(some, cores)]))
            server, clients = _serving(stack, portion)
            loaded, peak = server.process.memory_info().rss / MB, server.starting / MB
            in_int8 = _serving(stack, portion, "--precision", INT8)[1] if multiplies_int8() else None
            for _ in range(scale.of(1, 5)):
                ours.append(seconds_of(portion) / clients.turn().wall_s)
                loop.append(seconds_of(some) / tool.turn().wall_s)
                if in_int8:
                    short.append(seconds_of(portion) / in_int8.turn().wall_s)
            working = processes.peak_rss(server.process.pid)
            beside, alone = max(clients.peaks()), tool.peaks()[0]
        what = f"{bundle.NAME}, random weights, in the server with {CLIENTS} clients"
        yield faster(
            f"{what} over the loop of today's tools in single precision "
            f"({len(portion)} segments of {seconds_of(portion) / len(portion):.1f} s)",
            [one / other for one, other in zip(ours, loop, strict=True)],
            SPEED,
        )
        if short:
            yield Row(
                f"{what} in int8, which is an option, over the same loop",
                f"{spread([one / other for one, other in zip(short, loop, strict=True)])} times",
            )
        rates = ", ".join(map(spread, (ours, short, loop) if short else (ours, loop)))
        yield Row(f"audio seconds per wall second: ours, {'in int8, ' if short else ''}the loop", rates)
        yield Row(
            f"memory of the server after loading {weights_mb:.0f} MB of weights",
            f"{loaded:.0f} MB",
            f"at most {weights_mb + LOADED_MB:.0f} MB",
            loaded <= weights_mb + LOADED_MB,
        )
        yield Row(
            "the most that it had while loading",
            f"{peak:.0f} MB, {peak / loaded:.2f} times",
            f"at most {PEAK:g} times",
            peak <= PEAK * loaded,
        )
        yield memory_row("the loop", working, beside, alone)
        with processes.Crew(make_arithmetic, [(portion, cores)]) as arithmetic:
            turns = [arithmetic.turn().answers[0] for _ in range(scale.of(2, 3))]
    shares = [rate / gemm for rate, gemm in turns]
    yield Row(
        f"share of the rate of bf16 matrix products of {' x '.join(map(str, GEMM))} that the encoder reaches, "
        f"{cores} threads",
        f"{spread([100 * share for share in shares], 0)} %",
        f"at least {100 * SHARE:.0f} %",
        statistics.median(shares) >= SHARE,
    )
    yield Row(
        "GFLOP/s: the encoder, matrix products",
        f"{spread([rate / 1e9 for rate, _ in turns], 0)}, {spread([gemm / 1e9 for _, gemm in turns], 0)}",
    )


def _serving(
    stack: contextlib.ExitStack, said: Sequence[Utterance], *flags: str
) -> tuple[processes.ServerProcess, processes.Crew]:
    """A server and its clients, which share what is said; as long as the stack."""
    server = stack.enter_context(processes.server("--model", bundle.NAME, *flags))
    shares = [(server.address, said[n::CLIENTS], 1, bundle.NAME) for n in range(CLIENTS)]
    return server, stack.enter_context(processes.Crew(make_counting_stream, shares))


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """A cache of torch's with random weights in the place of MMS_FA's, as long as the context."""
    import torch  # noqa: PLC0415  slow to import, and not needed by those who import this module
    from torchaudio.models import wav2vec2_model  # noqa: PLC0415  the same

    before = os.environ.get("TORCH_HOME")
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        os.environ["TORCH_HOME"] = folder
        path = bundle.MMS_FA.path
        path.parent.mkdir(parents=True)
        rows = bundle.MMS_FA.params["aux_num_out"] + len(bundle.MMS_FA.unused)
        make: Any = wav2vec2_model
        torch.save(make(**{**bundle.MMS_FA.params, "aux_num_out": rows}).state_dict(), path)
        try:
            yield
        finally:
            del os.environ["TORCH_HOME"]
            if before is not None:
                os.environ["TORCH_HOME"] = before


def memory_row(tool: str, server: int, client: int, alone: int) -> Row:
    """Bytes at most of the server and of each of its clients against as many processes of a tool, `alone` each."""
    share = (server + CLIENTS * client) / (CLIENTS * alone)
    return Row(
        f"the most memory of the server and its {CLIENTS} clients over that of {CLIENTS} processes of {tool}",
        f"{share:.3f}: {server / MB:.0f} and {CLIENTS} x {client / MB:.0f} MB, {CLIENTS} x {alone / MB:.0f} MB",
        f"at most {MEMORY:g}",
        share <= MEMORY,
    )


def make_loop(said: Sequence[Utterance], threads: int) -> Callable[[], None]:
    """Loads torchaudio's model; its turn aligns everything, one after the other."""
    import torch  # noqa: PLC0415  see random_weights
    import torchaudio  # noqa: PLC0415  the same

    torch.set_num_threads(threads)
    make: Any = torchaudio.models.wav2vec2_model
    model = make(**bundle.MMS_FA.params).eval()
    tokens = {label: token for token, label in enumerate(bundle.MMS_FA.labels)}

    def work() -> None:
        with torch.inference_mode():
            for one in said:
                samples = torch.from_numpy(one.pcm).float()[None] / 32768
                emissions = model(torch.nn.functional.layer_norm(samples, samples.shape))[0].log_softmax(-1)
                letters = [tokens[letter] for word in one.words for letter in word.lower() if letter in tokens]
                torchaudio.functional.forced_align(emissions, torch.tensor([letters]), blank=0)

    return work


def make_arithmetic(said: Sequence[Utterance], threads: int) -> Callable[[], tuple[float, float]]:
    """Loads the engine; its turn answers with the operations a second of the encoder and of matrix products.

    Both in as many threads as there are cores, each of which computes by itself.
    """
    import torch  # noqa: PLC0415  see random_weights

    from align_server.engines import registry  # noqa: PLC0415  the same
    from in_process import segment  # noqa: PLC0415  the same

    engine = registry.create(bundle.NAME, "cpu")
    engine.load()
    items = [engine.prepare(segment(one)) for one in said]
    operations = sum(flops(len(one.pcm)) for one in said)
    m, k, n = GEMM
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()

    def multiply(until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            torch.nn.functional.linear(a, b)
            count += 1
        return count

    def work() -> tuple[float, float]:
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            list(pool.map(lambda item: engine.compute([item]), items))
            rate = operations / (time.perf_counter() - started)
            started = time.perf_counter()
            count = sum(pool.map(multiply, [started + GEMM_S] * threads))
            gemm = 2.0 * m * k * n * count / (time.perf_counter() - started)
        return rate, gemm

    return work


def flops(samples: int) -> float:
    """Operations that the encoder needs, a product and its sum counted as two."""
    params = bundle.MMS_FA.params
    total, count, channels = 0.0, samples, 1
    for width, kernel, stride in params["extractor_conv_layer_config"]:
        count = (count - kernel) // stride + 1
        total += 2.0 * count * kernel * channels * width
        channels = width
    width, inner = params["encoder_embed_dim"], params["encoder_ff_interm_features"]
    taps = params["encoder_pos_conv_kernel"] / params["encoder_pos_conv_groups"]
    total += 2.0 * count * width * (channels + width * taps)
    layer = 2.0 * count * (4 * width * width + 2 * width * inner) + 4.0 * count * count * width
    return float(total + params["encoder_num_layers"] * layer)


def _bytes_in_bf16() -> int:
    return bundle.MMS_FA.size_bytes // 2


def _about(said: Sequence[Utterance], seconds: float) -> list[Utterance]:
    return list(said[:: max(1, int(seconds_of(said) / seconds))])
