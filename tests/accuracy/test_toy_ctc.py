"""The toy checkpoint finds words of tones where they are: in an engine, in batches, in long audio, through a server."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from align_client import AsyncClient
from align_client import Word as Said
from align_server.engines import registry
from align_server.engines.ctc.engine import CtcEngine
from align_server.engines.engine import Result, Segment, Word, WordKind
from align_server.engines.precision import multiplies_int8
from align_server.engines.search import Search
from gpus import NEEDS_GPU
from support import PROJECT, launch
from toy.tones import LETTERS, RATE, Utterance, some_words, utterance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

FOLDER: Final = PROJECT / "tests" / "toy" / "checkpoint"
SEEDS: Final = range(2_000_000_000, 2_000_000_060)  # those of training are below 10**9
SLOT: Final = Word("", kind=WordKind.UNKNOWN_SOUND)
PAUSE: Final = Word("", kind=WordKind.PAUSE)

INT8: Final = pytest.param(
    "int8", marks=pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
)

Times = list[tuple[float, float]]


@pytest.fixture(scope="module")
def engine() -> Iterator[CtcEngine]:
    """The engine with the toy checkpoint; one torch thread, as in the server's lanes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = CtcEngine(f"ctc:{FOLDER}", FOLDER, "cpu")
    loaded.load()
    yield loaded
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exact() -> CtcEngine:
    """The same in fp32."""
    loaded = CtcEngine(f"ctc:{FOLDER}", FOLDER, "cpu", "fp32")
    loaded.load()
    return loaded


@pytest.fixture(scope="module")
def held_out() -> list[Utterance]:
    """Utterances of 1 to 17 words that training did not see, of about 0.5 to 15 s."""
    return [utterance(seed, some_words(seed, 1 + i % 17, (1, 2 + i % 4))) for i, seed in enumerate(SEEDS)]


@pytest.fixture(scope="module")
def alone(engine: CtcEngine, held_out: list[Utterance]) -> list[Result]:
    """What the engine says of each of them by itself."""
    return [engine.align([segment(said)])[0] for said in held_out]


def segment(said: Utterance, words: Iterable[str | Word] = ()) -> Segment:
    """The audio of an utterance, with its own words or others."""
    items = tuple(word if isinstance(word, Word) else Word(word) for word in words or said.words)
    return Segment("toy", said.pcm, items)


def times(result: Result) -> Times:
    """All words' times in ms; each must have one."""
    found: Times = []
    for word in result.words:
        assert word.start_ms is not None
        assert word.end_ms is not None
        found.append((word.start_ms, word.end_ms))
    return found


def errors(found: Sequence[Times], truth: Sequence[Sequence[tuple[float, float]]]) -> npt.NDArray[np.float64]:
    """How far starts and ends are from the truth in ms, later being positive, shape [words, 2]."""
    pairs = [(f, t) for fs, ts in zip(found, truth, strict=True) for f, t in zip(fs, ts, strict=True)]
    return np.array([np.subtract(f, t) for f, t in pairs])


def assert_true(found: Sequence[Times], truth: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Edges are where they were put: a frame is 20 ms long, so even a perfect model is 5 ms off on average."""
    error = np.abs(errors(found, truth))
    assert len(error) >= 5
    assert (error.mean(axis=0) <= 7).all(), error.mean(axis=0)
    assert ((error <= 20).mean(axis=0) >= 0.95).all(), (error <= 20).mean(axis=0)
    assert ((error <= 40).mean(axis=0) >= 0.99).all(), (error <= 40).mean(axis=0)


def another(word: str) -> str:
    """A word of as many letters, all of them others."""
    return "".join(LETTERS[(LETTERS.index(letter) + 5) % len(LETTERS)] for letter in word)


def test_the_folder_is_small_and_its_sums_hold() -> None:
    files = [path for path in FOLDER.iterdir() if path.name != "SHA256SUMS"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
    listed = dict(line.split("  ")[::-1] for line in (FOLDER / "SHA256SUMS").read_text("utf-8").splitlines())
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_utterances_are_what_they_are_said_to_be(held_out: list[Utterance]) -> None:
    lengths = [said.seconds for said in held_out]
    assert min(lengths) < 1
    assert max(lengths) > 12
    assert len({word for said in held_out for word in said.words}) > 250
    again = utterance(SEEDS[0], held_out[0].words)
    np.testing.assert_array_equal(again.pcm, held_out[0].pcm)
    for said in held_out:
        edges = [edge for pair in said.times for edge in pair]
        assert edges == sorted(set(edges))
        inside = np.concatenate([said.pcm[round(a * 16) : round(b * 16)] for a, b in said.times]).astype(float)
        before = said.pcm[: round(said.times[0][0] * 16)].astype(float)
        assert inside.std() > 2 * before.std()


def test_words_are_where_they_were_put(alone: list[Result], held_out: list[Utterance]) -> None:
    assert_true(list(map(times, alone)), [said.times for said in held_out])


def test_times_are_neither_early_nor_late(alone: list[Result], held_out: list[Utterance]) -> None:
    late = errors(list(map(times, alone)), [said.times for said in held_out]).mean(axis=0)
    assert (np.abs(late) <= 2).all(), late


def test_the_wrong_words_are_not_where_the_right_ones_were_put(engine: CtcEngine, held_out: list[Utterance]) -> None:
    """Else the other tests would show only that words of about the right length share the audio out."""
    some = held_out[::3]
    wrong = [times(engine.align([segment(said, map(another, said.words))])[0]) for said in some]
    error = np.abs(errors(wrong, [said.times for said in some]))
    assert ((error <= 40).mean(axis=0) <= 0.3).all(), (error <= 40).mean(axis=0)


def test_an_unknown_sound_leaves_its_neighbours_in_place_and_is_between_them(
    engine: CtcEngine, held_out: list[Utterance]
) -> None:
    found, truth, slots = [], [], []
    for said in held_out:
        if len(said.words) < 3:
            continue
        at = len(said.words) // 2
        whole = times(engine.align([segment(said, (*said.words[:at], SLOT, *said.words[at + 1 :]))])[0])
        found.append(whole[:at] + whole[at + 1 :])
        truth.append(said.times[:at] + said.times[at + 1 :])
        slots.append((whole[at], said.times[at]))
    assert_true(found, truth)
    overlaps = [min(f[1], t[1]) - max(f[0], t[0]) for f, t in slots]
    assert np.mean([overlap >= 0.7 * (t[1] - t[0]) for overlap, (_, t) in zip(overlaps, slots, strict=True)]) >= 0.9


def test_a_wrong_word_scores_lower_than_the_right_one(
    engine: CtcEngine, alone: list[Result], held_out: list[Utterance]
) -> None:
    right: list[float] = []
    wrong: list[float] = []
    for said, result in zip(held_out, alone, strict=True):
        at = len(said.words) // 2
        changed = (*said.words[:at], another(said.words[at]), *said.words[at + 1 :])
        right.append(result.words[at].score)
        wrong.append(engine.align([segment(said, changed)])[0].words[at].score)
    assert np.mean(right) >= 0.8
    assert np.mean(wrong) <= 0.3
    assert np.mean(np.greater(right, wrong)) >= 0.95


def test_a_pause_is_the_silence_between_two_words(engine: CtcEngine, held_out: list[Utterance]) -> None:
    found, truth, pauses, silences = [], [], [], []
    for said in held_out[1::2]:
        if len(said.words) < 2:
            continue
        whole = times(engine.align([segment(said, (said.words[0], PAUSE, *said.words[1:]))])[0])
        found.append([whole[0], *whole[2:]])
        truth.append(said.times)
        pauses.append([whole[1]])
        silences.append([(said.times[0][1], said.times[1][0])])
    assert_true(found, truth)
    assert_true(pauses, silences)


def test_long_audio_stays_in_place_to_the_end(engine: CtcEngine) -> None:
    """Longer than anything in training, and as long as the engine takes."""
    pieces = [utterance(seed, some_words(seed, 6)) for seed in SEEDS[:8]]
    repeated = [pieces[0]] * 12
    for some in (pieces, repeated):
        starts = [0, *itertools.accumulate(len(said.pcm) for said in some)]
        count = sum(end <= RATE * engine.max_segment_s for end in starts[1:])
        parts, starts = some[:count], starts[:count]
        pcm = np.concatenate([said.pcm for said in parts])
        assert len(pcm) > 30 * RATE
        item = Segment("long", pcm, tuple(Word(word) for said in parts for word in said.words))
        truth = [
            (1000 * first / RATE + start, 1000 * first / RATE + end)
            for said, first in zip(parts, starts, strict=True)
            for start, end in said.times
        ]
        (result,) = engine.align([item])
        found = times(result)
        assert_true([found], [truth])
        assert_true([found[-6:]], [truth[-6:]])


def test_company_and_order_change_no_time(engine: CtcEngine, alone: list[Result], held_out: list[Utterance]) -> None:
    items = [segment(said) for said in held_out[:20]]
    assert engine.align(items) == alone[:20]
    order = np.random.default_rng(0).permutation(len(items))
    assert engine.align([items[i] for i in order]) == [alone[i] for i in order]


@pytest.mark.parametrize("precision", ["bf16", INT8])
def test_less_precision_moves_no_word_by_more_than_a_frame(
    exact: CtcEngine, held_out: list[Utterance], precision: str
) -> None:
    short = CtcEngine(f"ctc:{FOLDER}", FOLDER, "cpu", precision)
    short.load()
    assert short.precision == precision
    items = [segment(said) for said in held_out]
    moved = np.concatenate(
        [np.subtract(times(a), times(b)).ravel() for a, b in zip(short.align(items), exact.align(items), strict=True)]
    )
    assert (np.abs(moved) <= exact.frame_ms).mean() >= 0.99


def test_it_hears_what_transformers_hears(exact: CtcEngine, held_out: list[Utterance]) -> None:
    model: Any = Wav2Vec2ForCTC.from_pretrained(FOLDER)  # has no types
    model.eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(FOLDER)
    for said in held_out[:15]:
        features = extractor(said.pcm.astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            expected = model(features.input_values).logits.log_softmax(-1)[0]
        step = exact.prepare(segment(said))
        assert not isinstance(step, Result)
        np.testing.assert_allclose(exact.compute([step])[0].emissions, expected, rtol=0, atol=1e-4)


async def test_two_clients_of_a_server_get_true_times_at_once(
    alone: list[Result], held_out: list[Utterance], room: Path
) -> None:
    name = f"ctc:{FOLDER}"
    running = launch(room / "align.sock", "--model", name, "--device", "cpu", "--lanes", "2")

    async def client(mine: list[Utterance]) -> list[Times]:
        async with AsyncClient(running.address, timeout=60, model=name) as sdk, sdk.stream() as stream:
            answers = [await stream.submit(said.pcm, [Said(word) for word in said.words]) for said in mine]
            words = await asyncio.gather(*answers)
        assert all(word.start is not None and word.end is not None for one in words for word in one)
        return [[(1000 * (word.start or 0), 1000 * (word.end or 0)) for word in one] for one in words]

    try:
        found = await asyncio.gather(client(held_out[::2]), client(held_out[1::2]))
    finally:
        running.stop()
    assert "Traceback" not in running.log
    for half, first in zip(found, (0, 1), strict=True):
        assert_true(half, [said.times for said in held_out[first::2]])
        np.testing.assert_allclose(errors(half, list(map(times, alone[first::2]))), 0, atol=0.01)


def test_utterances_are_found_in_a_long_recording(engine: CtcEngine, held_out: list[Utterance]) -> None:
    gaps = np.random.default_rng(1).uniform(0.2, 4, len(held_out))
    parts: list[npt.NDArray[np.int16]] = []
    starts: list[float] = []
    for said, gap in zip(held_out, gaps, strict=True):
        parts.append(np.random.default_rng(2).normal(0, 20, int(gap * RATE)).astype(np.int16))
        starts.append(sum(map(len, parts)) * 1000 / RATE + said.times[0][0])
        parts.append(said.pcm)
    pcm = np.concatenate(parts)
    scanning = engine.scanning
    assert scanning is not None
    missing = {7, 20}  # from the transcript
    kept = [i for i in range(len(held_out)) if i not in missing]
    words = [[engine.symbols(Word(word)) for word in held_out[i].words] for i in kept]
    search = Search(words, scanning)
    window = 15 * RATE
    for start in range(0, len(pcm), window):
        stop = min(len(pcm), start + window)
        (result,) = engine.align([Segment("", pcm[start : stop + RATE // 2], (), scan=True)])
        assert result.evidence is not None
        search.feed(result.evidence[: (stop - start) // (RATE // 1000) // scanning.frame_ms])
    places = search.finish()
    errors = [abs(place.start_ms - starts[i]) for place, i in zip(places, kept, strict=True) if place is not None]
    assert len(errors) == len(kept)
    assert np.percentile(errors, 95) <= 100
    assert min(place.score for place in places if place is not None) > 0.1


@NEEDS_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpus_move_no_word_by_more_than_a_frame(exact: CtcEngine, held_out: list[Utterance], precision: str) -> None:
    gpu = registry.create(f"ctc:{FOLDER}", "cuda", precision)
    gpu.load()
    assert (gpu.device, gpu.precision, gpu.pads) == ("cuda", precision, True)
    items = sorted(map(segment, held_out), key=lambda item: len(item.pcm))
    batches = [items[i : i + 4] for i in range(0, len(items), 4)]
    with ThreadPoolExecutor(2 * gpu.replicas) as lanes:  # several streams of each GPU, by turns
        found = [result for batch in lanes.map(gpu.align, batches * 5) for result in batch]
    moved = np.concatenate(
        [np.subtract(times(a), times(b)).ravel() for a, b in zip(found, 5 * exact.align(items), strict=True)]
    )
    assert (np.abs(moved) <= exact.frame_ms).mean() >= (1.0 if precision == "fp32" else 0.99)
    gpu.unload()
