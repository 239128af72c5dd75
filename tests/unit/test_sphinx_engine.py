"""The engine answers every segment: with times in order, or with the reason why there are none."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from align_server.engines.engine import EngineLoadError, MissingReason, Result, Segment, Word, WordKind
from align_server.engines.sphinx import engine as module
from align_server.engines.sphinx.engine import SphinxEngine
from align_server.engines.sphinx.model import FILES, model_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from align_server.engines.engine import Engine

SLOT = Word("", kind=WordKind.UNKNOWN_SOUND)
PAUSE = Word("", kind=WordKind.PAUSE)


def noise(seconds: float, seed: int = 0) -> npt.NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    n = round(16000 * seconds)
    level = np.repeat(rng.uniform(50, 4000, 1 + n // 1600), 1600)[:n]
    return (level * rng.normal(0, 1, n)).clip(-32768, 32767).astype(np.int16)


def segment(text: str, seconds: float = 2.0, *, seed: int = 0) -> Segment:
    return Segment(f"{text}/{seed}", noise(seconds, seed), tuple(Word(w) for w in text.split()))


def with_words(*words: Word, seconds: float = 2.0) -> Segment:
    return Segment("s", noise(seconds), words)


def reasons(result: Result) -> list[MissingReason | None]:
    return [word.reason for word in result.words]


def assert_in_order(result: Result, duration_ms: int) -> None:
    at = 0
    for word in result.words:
        if word.reason is None:
            assert word.start_ms is not None
            assert word.end_ms is not None
            assert at <= word.start_ms <= word.end_ms <= duration_ms
            assert 0 <= word.score <= 1
            at = word.end_ms


def test_it_has_what_an_engine_has(engine: SphinxEngine) -> None:
    as_engine: Engine = engine
    assert as_engine.name == "sphinx-en-us"
    assert as_engine.languages == ("eng",)
    assert engine.licence == "BSD-2-Clause"
    assert 5_000_000 < engine.size_bytes < 50_000_000
    assert as_engine.device == "cpu"
    assert not as_engine.pads
    assert as_engine.cost(1500) == 1500


def test_warming_up_runs_a_real_alignment(engine: SphinxEngine) -> None:
    engine.warm_up()


def test_every_word_gets_times_in_order_and_within_the_audio(engine: SphinxEngine) -> None:
    item = segment("she had your dark suit in greasy wash water all year", 3.21)
    (result,) = engine.align([item])
    assert reasons(result) == [None] * 11
    assert_in_order(result, item.duration_ms)
    assert all(w.end_ms is not None and w.start_ms is not None and w.end_ms > w.start_ms for w in result.words)


def test_an_empty_batch_has_no_results(engine: SphinxEngine) -> None:
    assert engine.align([]) == []


def test_a_segment_without_words_has_an_empty_result(engine: SphinxEngine) -> None:
    assert engine.align([segment("")])[0].words == ()


def test_more_words_than_fit_the_audio_are_too_short(engine: SphinxEngine) -> None:
    (result,) = engine.align([segment("strengths and weaknesses", 0.3)])
    assert set(reasons(result)) == {MissingReason.AUDIO_TOO_SHORT}
    assert "300 ms of audio" in result.words[0].detail


@pytest.mark.parametrize("samples", [0, 1, 100, 409])
def test_audio_of_a_frame_or_less_is_too_short(engine: SphinxEngine, samples: int) -> None:
    (result,) = engine.align([Segment("s", noise(1)[:samples], (Word("hello"), PAUSE))])
    assert reasons(result) == [MissingReason.AUDIO_TOO_SHORT] * 2


def test_the_shortest_audio_that_words_fit_in_gets_times(engine: SphinxEngine) -> None:
    frames = 12  # HH AH L OW, three frames each
    samples = 410 + 160 * (frames - 2)
    assert engine.align([Segment("s", noise(1)[:samples], (Word("hello"),))])[0].words[0].end_ms is not None
    too_short = engine.align([Segment("s", noise(1)[: samples - 1], (Word("hello"),))])
    assert reasons(too_short[0]) == [MissingReason.AUDIO_TOO_SHORT]


@pytest.mark.parametrize("value", [0, -1, 32767])
def test_a_constant_signal_is_no_speech(engine: SphinxEngine, value: int) -> None:
    (result,) = engine.align([Segment("s", np.full(32000, value, np.int16), (Word("hello"),))])
    assert reasons(result) == [MissingReason.NO_SPEECH]


def test_the_faintest_noise_still_aligns(engine: SphinxEngine) -> None:
    faint = np.random.default_rng(0).integers(-1, 2, 32000).astype(np.int16)
    (result,) = engine.align([Segment("s", faint, (Word("hello"),))])
    assert reasons(result) == [None]


def test_a_word_that_cannot_be_said_says_so_and_its_neighbours_have_times(engine: SphinxEngine) -> None:
    item = with_words(Word("hello"), Word("漢字"), Word("world"))
    (result,) = engine.align([item])
    assert reasons(result) == [None, MissingReason.UNPRONOUNCEABLE, None]
    assert "漢字" in result.words[1].detail
    assert_in_order(result, item.duration_ms)


def test_a_word_of_another_language_says_so_and_its_neighbours_have_times(engine: SphinxEngine) -> None:
    (result,) = engine.align([with_words(Word("hello"), Word("hola", "spa"), Word("world", "eng"))])
    assert reasons(result) == [None, MissingReason.UNSUPPORTED_LANGUAGE, None]
    assert "'hola'" in result.words[1].detail
    assert "'spa'" in result.words[1].detail


def test_nothing_is_computed_where_no_word_can_be_said(engine: SphinxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the search ran")

    monkeypatch.setattr(module, "best_path", fail)
    words = (Word("漢字"), SLOT, PAUSE, Word("hola", "spa"))
    (result,) = engine.align([with_words(*words)])
    assert reasons(result) == [MissingReason.UNPRONOUNCEABLE] * 3 + [MissingReason.UNSUPPORTED_LANGUAGE]


def test_an_unknown_sound_takes_time(engine: SphinxEngine) -> None:
    item = with_words(Word("hello"), SLOT, Word("world"), SLOT)
    (result,) = engine.align([item])
    assert reasons(result) == [None] * 4
    assert_in_order(result, item.duration_ms)
    assert all(w.end_ms is not None and w.start_ms is not None and w.end_ms > w.start_ms for w in result.words)


def test_pauses_may_have_no_length_and_keep_the_order(engine: SphinxEngine) -> None:
    item = with_words(PAUSE, Word("hello"), PAUSE, PAUSE, Word("world"), PAUSE)
    (result,) = engine.align([item])
    assert reasons(result) == [None] * 6
    assert_in_order(result, item.duration_ms)
    assert result.words[0].start_ms == 0
    assert result.words[2].end_ms == result.words[3].start_ms == result.words[3].end_ms == result.words[4].start_ms


def test_phones_are_those_of_a_pronunciation_and_fill_their_word(engine: SphinxEngine) -> None:
    item = segment("she had your dark suit in greasy wash water all year", 3.21)
    (result,) = engine.align([replace(item, phones=True)])
    for asked, word in zip(item.words, result.words, strict=True):
        known = engine._ready().lexicon.pronunciations(asked.text)
        assert tuple(phone.symbol for phone in word.phones) in known
        assert (word.phones[0].start_ms, word.phones[-1].end_ms) == (word.start_ms, word.end_ms)
        assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(word.phones))
        assert all(phone.start_ms < phone.end_ms for phone in word.phones)
    # Nothing else changes, and nobody gets them unasked.
    assert [replace(word, phones=()) for word in result.words] == list(engine.align([item])[0].words)


def test_what_is_no_word_or_has_no_time_has_no_phones(engine: SphinxEngine) -> None:
    item = with_words(PAUSE, Word("hello"), SLOT, Word("hola", "spa"), Word("world"), Word("漢字"))
    (result,) = engine.align([replace(item, phones=True)])
    assert [len(word.phones) for word in result.words] == [0, 4, 0, 0, 4, 0]
    (silent,) = engine.align([replace(item, phones=True, pcm=np.zeros(32000, np.int16))])
    assert not any(word.phones for word in silent.words)


def test_one_segment_that_fails_leaves_its_neighbours_alone(engine: SphinxEngine) -> None:
    good = segment("hello world")
    bad = [segment("strengths", 0.1), segment("漢字"), segment(""), Segment("z", np.zeros(9, np.int16), (Word("a"),))]
    assert engine.align([bad[0], good, *bad[1:]])[1] == engine.align([good])[0]


def test_a_result_is_the_same_alone_and_in_any_batch(engine: SphinxEngine) -> None:
    texts = ("hello", "she had your dark suit", "strengths and weaknesses", "a", "read the content record again")
    batch = [
        segment(text, seconds, seed=i) for i, (text, seconds) in enumerate(zip(texts, (1, 9, 2, 0.3, 4), strict=True))
    ]
    batch.append(with_words(Word("hello"), SLOT, PAUSE, Word("world"), seconds=1.7))
    batch.append(replace(batch[0], phones=True))
    alone = [engine.align([item])[0] for item in batch]
    assert engine.align(batch) == alone
    assert engine.align(batch[::-1]) == alone[::-1]
    assert engine.align(batch[::2]) == alone[::2]


def test_threads_may_align_at_once(engine: SphinxEngine) -> None:
    batches = [[segment("hello world", 1 + 0.1 * i, seed=i), segment("good morning", 2, seed=i)] for i in range(8)]
    expected = [engine.align(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(engine.align, batches)) == expected


def test_each_step_may_run_in_another_thread_while_others_run(engine: SphinxEngine) -> None:
    batch = [segment("she had your dark suit", 2 + 0.1 * i, seed=i) for i in range(8)]
    batch += [with_words(Word("hello"), SLOT, PAUSE, Word("world")), segment("strengths", 0.1), segment("漢字")]
    expected = engine.align(batch)
    with ThreadPoolExecutor(3) as preparing, ThreadPoolExecutor(3) as computing, ThreadPoolExecutor(3) as decoding:

        def align(item: Segment) -> Result:
            prepared = preparing.submit(engine.prepare, item).result()
            if isinstance(prepared, Result):
                return prepared
            (scored,) = computing.submit(engine.compute, [prepared]).result()
            return decoding.submit(engine.decode, scored).result()

        with ThreadPoolExecutor(len(batch)) as pool:
            assert list(pool.map(align, batch)) == expected


def test_a_prepared_segment_can_be_computed_twice_alone_and_in_a_batch(engine: SphinxEngine) -> None:
    steps = [engine.prepare(segment(text, 2)) for text in ("hello world", "good morning")]
    prepared = [step for step in steps if not isinstance(step, Result)]
    assert len(prepared) == 2
    together = [engine.decode(scored) for scored in engine.compute(prepared)]
    assert together == [engine.decode(engine.compute([item])[0]) for item in prepared]


def test_the_number_of_threads_within_torch_moves_no_word(engine: SphinxEngine) -> None:
    item = segment("she had your dark suit in greasy wash water all year", 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as in the server
        (one,) = engine.align([item])
        torch.set_num_threads(4)  # the last bits of a large product depend on how it is shared out
        (four,) = engine.align([item])
    finally:
        torch.set_num_threads(before)
    assert [(w.start_ms, w.end_ms) for w in four.words] == [(w.start_ms, w.end_ms) for w in one.words]
    assert [w.score for w in four.words] == pytest.approx([w.score for w in one.words], abs=1e-3)


def test_a_segment_of_the_greatest_length_is_aligned(engine: SphinxEngine) -> None:
    item = segment("the quick brown fox jumps over the lazy dog " * 30, engine.max_segment_s)
    (result,) = engine.align([item])
    assert reasons(result) == [None] * 270
    assert_in_order(result, item.duration_ms)


def test_an_engine_that_is_not_loaded_says_so(engine: SphinxEngine) -> None:
    fresh = SphinxEngine()
    with pytest.raises(RuntimeError, match="before load"):
        fresh.align([segment("hello")])
    fresh.load()
    assert fresh.align([segment("hello")]) == engine.align([segment("hello")])
    fresh.unload()
    with pytest.raises(RuntimeError, match="before load"):
        fresh.align([segment("hello")])


def test_loading_says_how_far_it_is() -> None:
    said: list[tuple[float, str]] = []
    SphinxEngine().load(lambda share, what: said.append((share, what)))
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert all(what for _, what in said)


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the model that engines load instead."""
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    monkeypatch.setattr(module, "model_folder", lambda: folder)
    return folder


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_a_flipped_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("name", [name for name, _, _ in FILES])
@pytest.mark.parametrize(("damage", "found"), [(cut_off, "has .* bytes where"), (with_a_flipped_bit, "its SHA-256 is")])
def test_a_damaged_model_is_not_loaded(copy: Path, name: str, damage: Callable[[bytes], bytes], found: str) -> None:
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(
        EngineLoadError, match=rf"{name} is not a usable.*{found}.*pip install --force-reinstall pocketsphinx==5\.1\.1"
    ):
        SphinxEngine().load()


@pytest.mark.parametrize("name", [name for name, _, _ in FILES])
def test_a_model_that_lacks_a_file_is_not_loaded(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineLoadError, match=rf"cannot read .*{name}: No such file.*pip install --force-reinstall"):
        SphinxEngine().load()


def test_the_revision_follows_the_files_and_the_decoder(
    engine: SphinxEngine, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del copy
    assert SphinxEngine().revision == engine.revision
    supplement = tmp_path / "supplement.dict"
    supplement.write_text("oink OY NG K\n", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(module, "SUPPLEMENT", supplement)
        assert SphinxEngine().revision != engine.revision
    monkeypatch.setattr(module, "DECODER_VERSION", module.DECODER_VERSION + 1)
    assert SphinxEngine().revision != engine.revision
