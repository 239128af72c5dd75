"""Recognition with `whisper:` on the CPU against `generate` of transformers: the same weights and recordings, in turns.

Ours computes one segment in each of as many threads as there are cores, and times the words that it finds; transformers
computes a segment after the other on all cores, in single precision, greedily, and times nothing. Needs OpenAI's
tiny.en.pt with gpt2.tiktoken beside it, named by WHISPER_TINY_EN or where the tests have put them.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs

import processes
from clients import seconds_of
from inputs import Utterance, utterances
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SPEED: Final = 1.2  # times transformers
PRECISIONS: Final = ("bf16", "fp32")
RATE: Final = 16_000


def weights() -> Path:
    """Where the tests keep tiny.en.pt."""
    own = os.environ.get("WHISPER_TINY_EN")
    return Path(own) if own else platformdirs.user_cache_path("chatalign") / "tests" / "tiny.en.pt"


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table; none where the weights are not there."""
    path = weights()
    if not path.is_file():
        yield Row("recognition", f"not measured: {path} is not there")
        return
    said = utterances()
    portion = said[:: max(1, len(said) // scale.of(10, 15))]
    cores = processes.cores()
    with (
        processes.Crew(make_generate, [(path, portion, cores)]) as theirs,
        processes.Crew(make_engine, [(path, portion, PRECISIONS[0], cores)]) as quick,
        processes.Crew(make_engine, [(path, portion, PRECISIONS[1], cores)]) as plain,
    ):
        walls: dict[str, list[float]] = {name: [] for name in ("theirs", *PRECISIONS)}
        factors = []
        for _ in range(scale.of(2, 3)):
            walls["theirs"].append(theirs.turn().wall_s)
            for name, crew in zip(PRECISIONS, (quick, plain), strict=True):
                turn = crew.turn()
                finding, aligning = turn.answers[0]
                walls[name].append(finding)
                if name == PRECISIONS[0]:
                    factors.append(finding / aligning)
    seconds = seconds_of(portion)
    for name in PRECISIONS:
        ratios = [one / other for one, other in zip(walls["theirs"], walls[name], strict=True)]
        yield Row(
            f"recognition with tiny.en in {name}, {cores} lanes, word times included, over `generate` of transformers "
            f"in fp32 on {cores} cores ({len(portion)} segments of {seconds / len(portion):.1f} s)",
            f"{spread(ratios)} times",
            f"at least {SPEED:g} times" if name == PRECISIONS[0] else "",
            min(ratios) >= SPEED if name == PRECISIONS[0] else None,
        )
    rates = (spread([seconds / wall for wall in walls[name]]) for name in (*PRECISIONS, "theirs"))
    yield Row("audio seconds per wall second: bf16, fp32, transformers", ", ".join(rates))
    yield Row("time of finding words over that of aligning the same, bf16", f"{spread(factors)} times")


def make_generate(path: Path, said: Sequence[Utterance], threads: int) -> Callable[[], None]:
    """Loads the model with transformers; its turn transcribes everything, one after the other."""
    import torch  # noqa: PLC0415  slow to import, and not needed by those who import this module
    from transformers import (  # noqa: PLC0415  the same
        GenerationConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    from align_server.engines.whisper import openai  # noqa: PLC0415  the same
    from align_server.engines.whisper.checkpoint import Checkpoint  # noqa: PLC0415  the same
    from align_server.engines.whisper.text import BEGIN, NO_TIMES, Tokenizer  # noqa: PLC0415  the same

    torch.set_num_threads(threads)
    checkpoint = Checkpoint.read(openai.converted(path))
    tokenizer = Tokenizer.read(checkpoint.folder, checkpoint.size.vocabulary, multilingual=False)
    load: Any = WhisperForConditionalGeneration.from_pretrained
    model = load(checkpoint.folder, dtype=torch.float32).eval()
    make: Any = WhisperFeatureExtractor
    extract = make(feature_size=checkpoint.size.bands)
    begin = tokenizer.special[BEGIN]
    configure: Any = GenerationConfig
    config = configure(
        decoder_start_token_id=begin,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        bos_token_id=tokenizer.end,
        no_timestamps_token_id=tokenizer.special[NO_TIMES],
        suppress_tokens=list(tokenizer.marks()),
        begin_suppress_tokens=list(tokenizer.blank()),
        max_length=checkpoint.size.tokens // 2,
        is_multilingual=False,
        return_timestamps=False,
    )
    model.generation_config = config

    def work() -> None:
        with torch.inference_mode():
            for one in said:
                found = extract(one.pcm.astype("float32") / 32768, sampling_rate=RATE, return_tensors="pt")
                model.generate(found.input_features, num_beams=1, do_sample=False)

    return work


def make_engine(
    path: Path, said: Sequence[Utterance], precision: str, threads: int
) -> Callable[[], tuple[float, float]]:
    """Loads the engine; its turn answers with the seconds that finding all words took, and aligning the same words."""
    import torch  # noqa: PLC0415  see make_generate

    from align_server.engines.engine import Segment  # noqa: PLC0415  the same
    from align_server.engines.whisper.engine import WhisperEngine  # noqa: PLC0415  the same

    torch.set_num_threads(1)
    engine = WhisperEngine("whisper:tiny.en.pt", path, "cpu", precision)
    engine.load()
    asked = [Segment(one.id, one.pcm, (), transcribe="") for one in said]

    def timed(segments: Sequence[Segment]) -> tuple[float, list[Any]]:
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            found = list(pool.map(lambda one: engine.align([one])[0], segments))
            return time.perf_counter() - started, found

    timed(asked[:threads])  # compiles

    def work() -> tuple[float, float]:
        finding, found = timed(asked)
        given = [Segment(one.id, one.pcm, result.said) for one, result in zip(asked, found, strict=True)]
        return finding, timed([one for one in given if one.words])[0]

    return work
