"""Words placed by the attention of Whisper tiny.en: `whisper:` on the CPU against `find_alignment` of openai-whisper.

The same weights, recordings and words, in turns; scored by the corpus's own program. Needs what `recognition` needs and
openai-whisper beside us: `pip install --no-deps openai-whisper==20250625 tiktoken`.
"""

from __future__ import annotations

import importlib.util
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import processes
from accuracy import Words, score, told
from clients import LANGUAGE, seconds_of
from inputs import Utterance, hand_labelled, has_corpora
from recognition import weights
from rows import Row, Scale, faster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Found = dict[str, Words]

WHAT: Final = "word starts of whisper tiny.en on hand-labelled speech"
SPEED: Final = 3.0  # times openai-whisper
TIMES: Final = 3  # that a turn does all of it


def measure(scale: Scale) -> Iterator[Row]:
    """Rows of the table; one that says why where something is not there."""
    path = weights()
    if missing := _missing(path):
        yield Row(WHAT, f"not measured: {missing}")
        return
    said = hand_labelled()
    cores = processes.cores()
    with (
        processes.Crew(make_theirs, [(path, said, cores)]) as theirs,
        processes.Crew(make_ours, [(path, said, cores)]) as ours,
    ):
        theirs.turn()
        ours.turn()
        pairs = [(theirs.turn(), ours.turn()) for _ in range(scale.of(3, 5))]
    reference, found = (score(turn.answers[0]) for turn in pairs[-1])
    yield Row(
        f"{WHAT} ({sum(len(one.words) for one in said)} words)",
        told(found),
        "mean no more than openai-whisper's",
        found["mean"] <= reference["mean"] and not found["missing"],
    )
    yield Row("the same by `find_alignment` of openai-whisper", told(reference))
    yield faster(
        f"whisper tiny.en, placing known words, over openai-whisper on as many cores "
        f"({len(said)} utterances of {seconds_of(said) / len(said):.1f} s)",
        [one.wall_s / other.wall_s for one, other in pairs],
        SPEED,
    )
    audio_s = TIMES * seconds_of(said)
    rates = (statistics.median([audio_s / turn.wall_s for turn in side]) for side in zip(*pairs, strict=True))
    yield Row("audio seconds per wall second: openai-whisper, ours", ", ".join(f"{rate:.1f}" for rate in rates))


def _missing(path: Path) -> str:
    if not has_corpora():
        return "the recordings of ../shared/data are not here"
    if not path.is_file():
        return f"{path} is not there"
    if importlib.util.find_spec("whisper") is None:
        return "openai-whisper is not installed"
    return ""


def make_theirs(path: Path, said: Sequence[Utterance], threads: int) -> Callable[[], Found]:
    """Loads openai-whisper; its turn places the words of one utterance after the other, and answers with them."""
    import torch  # noqa: PLC0415  slow to import, and not needed by those who import this module

    whisper: Any = importlib.import_module("whisper")
    timing: Any = importlib.import_module("whisper.timing")
    torch.set_num_threads(threads)
    model = whisper.load_model(str(path), device="cpu")
    tokenizer = whisper.tokenizer.get_tokenizer(multilingual=False)

    def words(one: Utterance) -> Words:
        audio = one.pcm.astype("float32") / 32768
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(audio))
        tokens = tokenizer.encode(" " + " ".join(one.words))
        frames = len(audio) // whisper.audio.HOP_LENGTH
        placed = timing.find_alignment(model, tokenizer, tokens, mel, frames)
        return [
            {"word": word, "start": float(found.start), "end": float(found.end)}
            for word, found in zip(one.words, placed, strict=True)
        ]

    return lambda: [{one.id: words(one) for one in said} for _ in range(TIMES)][-1]


def make_ours(path: Path, said: Sequence[Utterance], threads: int) -> Callable[[], Found]:
    """Loads the engine; its turn places the words of as many utterances at a time as there are threads."""
    import torch  # noqa: PLC0415  see make_theirs

    from align_server.engines.engine import Result, Segment, Word  # noqa: PLC0415  the same
    from align_server.engines.whisper.engine import WhisperEngine  # noqa: PLC0415  the same

    torch.set_num_threads(1)
    engine = WhisperEngine("whisper:tiny.en.pt", path, "cpu", "auto")
    engine.load()
    engine.warm_up()
    asked = [Segment(one.id, one.pcm, tuple(Word(word, LANGUAGE) for word in one.words)) for one in said]

    def times(result: Result, one: Utterance) -> Words:
        def seconds(ms: int | None) -> float | None:
            return None if ms is None else ms / 1000

        return [
            {"word": word, "start": seconds(found.start_ms), "end": seconds(found.end_ms)}
            for word, found in zip(one.words, result.words, strict=True)
        ]

    def work() -> Found:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(lambda one: engine.align([one])[0], asked * TIMES))
        return {one.id: times(result, one) for one, result in zip(said, results[-len(said) :], strict=True)}

    return work
