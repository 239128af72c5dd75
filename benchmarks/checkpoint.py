"""`ctc:` with a wav2vec2 base of random weights against transformers' own model in fp32, and in int8 against bf16.

Turn by turn, all on all cores: ours computes a segment on each, transformers one segment at a time in as many threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import processes
from align_server.engines import registry
from clients import seconds_of
from in_process import RANDOM, checkpoint, make_engine, make_precise
from inputs import Utterance, grouped, utterances
from rows import Row, Scale, faster, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SPEED = 2.0  # times transformers
SEGMENT_S = 15.0
AUDIO_S = 160.0  # a turn


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table."""
    cores = processes.cores()
    audio_s = scale.of(AUDIO_S / 2, AUDIO_S)
    with checkpoint() as model:
        for name, said in (("single utterances", utterances()), ("up to 15 s", grouped(SEGMENT_S, utterances()))):
            some = list(said[:: max(1, int(seconds_of(said) / audio_s))])
            with (
                processes.Crew(make_engine, [(model, some, 1, 1, cores)]) as ours,
                processes.Crew(make_theirs, [(model.removeprefix(registry.CTC), some, cores)]) as theirs,
            ):
                ours.turn()
                theirs.turn()
                rates = [
                    (seconds_of(some) / ours.turn().wall_s, seconds_of(some) / theirs.turn().wall_s)
                    for _ in range(scale.of(2, 3))
                ]
            yield faster(
                f"{RANDOM}, {name}: our engine over transformers in fp32 "
                f"({len(some)} of {seconds_of(some) / len(some):.1f} s on average)",
                [one / other for one, other in rates],
                SPEED,
            )
            yield Row(
                f"{RANDOM}, {name}, audio seconds per wall second: ours, transformers",
                f"{spread([one for one, _ in rates])}, {spread([other for _, other in rates])}",
            )
            yield from _in_int8(f"{RANDOM}, {name}", model, some, scale)


def _in_int8(name: str, model: str, some: Sequence[Utterance], scale: Scale) -> Iterator[Row]:
    """The rows of our engine in two precisions; none on a CPU that does not have both."""
    from align_server.engines import precision  # noqa: PLC0415  imports torch

    if not (precision.multiplies_int8() and precision.multiplies_bf16()):
        return
    cores = processes.cores()
    with (
        processes.Crew(make_precise, [(model, some, cores, "int8")]) as short,
        processes.Crew(make_precise, [(model, some, cores, "bf16")]) as long,
    ):
        short.turn()
        long.turn()
        rates = [
            (seconds_of(some) / short.turn().wall_s, seconds_of(some) / long.turn().wall_s)
            for _ in range(scale.of(2, 5))
        ]
    times = f"{spread([one / other for one, other in rates], 2)} times"
    yield Row(f"{name}: our engine in int8 over itself in bf16", times)
    yield Row(
        f"{name}, audio seconds per wall second: in int8, in bf16",
        f"{spread([one for one, _ in rates])}, {spread([other for _, other in rates])}",
    )


def make_theirs(folder: str, said: Sequence[Utterance], cores: int) -> Callable[[], None]:
    """Loads transformers' model; its turn gets the logits of everything."""
    import torch  # noqa: PLC0415  slow to import, and not needed by those who import this module
    import transformers  # noqa: PLC0415  the same

    library: Any = transformers  # has types for some of it
    torch.set_num_threads(cores)
    model = library.AutoModelForCTC.from_pretrained(Path(folder)).eval()
    extractor = library.AutoFeatureExtractor.from_pretrained(Path(folder))

    def work() -> None:
        with torch.inference_mode():
            for one in said:
                model(extractor(one.pcm / 32768.0, sampling_rate=16_000, return_tensors="pt").input_values)

    return work
