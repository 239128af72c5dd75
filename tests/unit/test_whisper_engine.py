"""A Whisper checkpoint aligns: with times in order, the same in any company, or with the reason why not."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import torch

from align_server.engines.engine import MissingReason, Result, Segment, Word
from align_server.engines.whisper.engine import WhisperEngine, _Prepared, _Scored
from segments import PAUSE, SLOT, noise, segment
from whispers import write_whisper

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest, folder: Path) -> WhisperEngine:
    return loaded(folder, str(request.param))


def loaded(folder: Path, precision: str = "fp32") -> WhisperEngine:
    engine = WhisperEngine(f"whisper:{folder}", folder, "cpu", precision)
    engine.load()
    return engine


def several() -> list[Segment]:
    words = ("the", "hat", SLOT, "he", "the", "other")
    return [segment(*words[: 2 + i], seconds=s, seed=i) for i, s in enumerate((1.0, 2.3, 1.0, 0.7))]


def prepared(engine: WhisperEngine, item: Segment) -> _Prepared:
    step = engine.prepare(item)
    assert isinstance(step, _Prepared)
    return step


def refused(engine: WhisperEngine, item: Segment) -> Result:
    step = engine.prepare(item)
    assert isinstance(step, Result)
    assert len(step.words) == len(item.words)
    return step


def times(result: Result) -> list[tuple[int | None, int | None]]:
    return [(word.start_ms, word.end_ms) for word in result.words]


def looking(engine: WhisperEngine, item: Segment, starts: list[int]) -> Result:
    """The result where each token after the prompt is looked for from that frame to the next one's, and thought 0.5."""
    plan = prepared(engine, item).plan
    assert len(starts) == len(plan.owners)
    edges = [0, *starts, plan.frames - 10, plan.frames]
    weights = np.full((2, len(plan.tokens), plan.frames), 0.001, np.float32)
    for i in range(len(edges) - 1):
        weights[:, plan.first - 1 + i, edges[i] : edges[i + 1]] = 0.1
    return engine.decode(_Scored(plan, weights, np.full(len(starts), 0.5, np.float32)))


def test_it_has_what_an_engine_has(folder: Path, engine: WhisperEngine) -> None:
    assert engine.name == f"whisper:{folder}"
    assert engine.languages[:2] == ("eng", "zho")
    assert len(engine.languages) > 99
    assert (engine.frame_ms, engine.max_segment_s) == (20, 4)
    assert (engine.device, engine.pads) == ("cpu", False)
    assert engine.size_bytes == (folder / "model.safetensors").stat().st_size


def test_equal_revisions_compute_the_same(folder: Path, engine: WhisperEngine) -> None:
    assert WhisperEngine("x", folder, "cpu", engine.precision).revision == engine.revision
    other = "bf16" if engine.precision == "fp32" else "fp32"
    assert WhisperEngine("x", folder, "cpu", other).revision != engine.revision


def test_warming_up_computes(engine: WhisperEngine) -> None:
    engine.warm_up()


def test_loading_uses_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loaded(folder)


def test_loading_says_how_far_it_is(folder: Path) -> None:
    seen: list[tuple[float, str]] = []
    WhisperEngine("x", folder, "cpu").load(lambda share, what: seen.append((share, what)))
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert [what for _, what in seen][-2:] == ["reading the weights", "loaded"]


def test_a_segment_has_the_same_result_in_any_batch(engine: WhisperEngine) -> None:
    together = engine.align(several())
    assert together == [engine.align([item])[0] for item in several()]
    assert together == engine.align(several()[::-1])[::-1]


def test_a_segment_has_the_same_result_in_any_thread(engine: WhisperEngine) -> None:
    expected = engine.align(several())
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: engine.align(several()), range(6))) == [expected] * 6


def test_a_shared_forward_gives_what_one_alone_does(folder: Path) -> None:
    # As it is done on a GPU, here on the CPU.
    engine = loaded(folder)
    assert engine._model is not None
    batch = [prepared(engine, segment("the", *["he"] * i, seconds=2.1 + i / 10, seed=i)) for i in range(4)]
    assert len({item.mel.shape for item in batch}) == 1
    assert len({len(item.plan.tokens) for item in batch}) == 4
    with torch.inference_mode():
        together = engine._together(engine._model, batch)
    for one, other in zip(engine.compute(batch), together, strict=True):
        assert isinstance(one, _Scored)
        np.testing.assert_allclose(one.weights, other.weights, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.likely, other.likely, rtol=0, atol=1e-5)


def test_an_empty_batch_computes_nothing(engine: WhisperEngine) -> None:
    assert engine.compute([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_word_gets_times_in_order_and_within_the_audio(engine: WhisperEngine, seed: int) -> None:
    item = segment("she", PAUSE, "had", SLOT, "your", "dark", PAUSE, PAUSE, "7", "'", "", seed=seed, seconds=1.234)
    (result,) = engine.align([item])
    at = 0
    for word in result.words:
        assert (word.reason is None) == (word.start_ms is not None) == (word.end_ms is not None)
        if word.start_ms is not None and word.end_ms is not None:
            assert at <= word.start_ms <= word.end_ms <= item.duration_ms
            at = word.end_ms
        assert 0 <= word.score <= 1
    assert [word.reason for word in result.words] == [None] * 10 + [MissingReason.UNPRONOUNCEABLE]


def test_the_longest_segment_is_aligned(engine: WhisperEngine) -> None:
    (result,) = engine.align([segment("the", "he", seconds=engine.max_segment_s)])
    assert None not in [word.start_ms for word in result.words]


def test_words_are_where_the_heads_look_for_their_tokens(engine: WhisperEngine) -> None:
    # "the" is one token; "he" two, as no token begins with a space and h; a slot is three points after a space.
    result = looking(engine, segment("the", "he", PAUSE, SLOT, "the"), [8, 15, 25, 35, 40, 45, 50, 60])
    assert times(result) == [(160, 300), (300, 700), (700, 700), (700, 1200), (1200, 1800)]
    assert [word.score for word in result.words] == [0.5, 0.5, 0, 0, 0.5]


def test_a_pause_at_the_start_or_the_end_has_what_is_left(engine: WhisperEngine) -> None:
    result = looking(engine, segment(PAUSE, "the", "the", PAUSE), [12, 30])
    assert times(result) == [(0, 240), (240, 600), (600, 1800), (1800, 2000)]


def test_words_keep_their_own_tokens_after_the_prompt(engine: WhisperEngine) -> None:
    plan = prepared(engine, segment("the", "a")).plan
    special = engine._tokenizer.special
    begin = [special[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    assert list(plan.tokens[:4]) == begin
    assert plan.tokens[-1] == special["<|endoftext|>"]
    assert (plan.first, plan.owners) == (3, (0, 1, 1))


def test_the_language_is_that_of_most_words(engine: WhisperEngine) -> None:
    plan = prepared(engine, segment(Word("the", "deu"), Word("the"), Word("the", "deu"))).plan
    assert plan.tokens[1] == engine._tokenizer.special["<|de|>"]


def test_a_language_without_spaces_has_none_between_words(engine: WhisperEngine) -> None:
    spaced = prepared(engine, segment(Word("e", "deu"), Word("e", "deu"))).plan.owners
    joined = prepared(engine, segment(Word("e", "cmn"), Word("e", "cmn"))).plan.owners
    assert (spaced, joined) == ((0, 0, 1, 1), (0, 1))


def test_a_word_of_a_language_that_is_not_known_keeps_its_place_and_says_why(engine: WhisperEngine) -> None:
    result = looking(engine, segment("the", Word("he", "xyz"), "the"), [8, 15, 25, 35])
    assert [w.reason for w in result.words] == [None, MissingReason.UNSUPPORTED_LANGUAGE, None]
    assert "'he' is in 'xyz'" in result.words[1].detail
    assert times(result) == [(160, 300), (None, None), (700, 1800)]


def test_an_english_model_is_told_no_language(tmp_path: Path) -> None:
    engine = loaded(write_whisper(tmp_path, multilingual=False))
    assert engine.languages == ("eng",)
    assert len(prepared(engine, segment("the")).plan.tokens) == 4
    item = segment(Word("the", "deu"))
    assert refused(engine, item).words[0].reason is MissingReason.UNSUPPORTED_LANGUAGE


def test_special_tokens_in_a_word_are_text(engine: WhisperEngine) -> None:
    plan = prepared(engine, segment("<|endoftext|>")).plan
    assert plan.owners == (0,) * 14


def test_without_text_there_is_nothing_to_compute(engine: WhisperEngine) -> None:
    result = refused(engine, segment(" ", SLOT, PAUSE))
    assert {word.reason for word in result.words} == {MissingReason.UNPRONOUNCEABLE}
    assert engine.prepare(segment()) == Result(())


def test_digital_silence_has_no_speech(engine: WhisperEngine) -> None:
    silence = Segment("silence", np.full(16000, 7, np.int16), (Word("the"),))
    assert engine.prepare(silence) == Result.missing(silence, MissingReason.NO_SPEECH, "every sample is 7")


def test_more_tokens_than_the_model_takes_are_refused(engine: WhisperEngine) -> None:
    assert isinstance(engine.prepare(segment(*["the"] * 32)), _Prepared)
    result = refused(engine, segment(*["the"] * 33))
    assert result.words[0].reason is MissingReason.AUDIO_TOO_SHORT
    assert result.words[0].detail == "33 tokens in one segment, where the model takes 32; align shorter utterances"


@pytest.mark.parametrize("samples", [0, 1, 319, 959])
def test_more_tokens_than_frames_are_too_short(engine: WhisperEngine, samples: int) -> None:
    result = refused(engine, Segment("short", noise(1)[:samples], (Word("he"), Word("the"))))
    assert {word.reason for word in result.words} == {MissingReason.AUDIO_TOO_SHORT}
    assert "20 ms each" in result.words[0].detail


def test_the_shortest_audio_is_aligned(engine: WhisperEngine) -> None:
    assert times(engine.align([Segment("short", noise(1)[:320], (Word("the"),))])[0]) == [(0, 0)]


def test_a_model_that_gives_no_numbers_fails_on_each_item_alone(folder: Path) -> None:
    engine = loaded(folder)
    assert engine._model is not None
    engine._model.get_parameter("encoder.layer_norm.bias").fill_(float("nan"))
    for scored in engine.compute([prepared(engine, item) for item in several()]):
        with pytest.raises(ArithmeticError, match="not finite numbers"):
            engine.decode(scored)


def test_a_segment_costs_what_its_context_does(engine: WhisperEngine) -> None:
    costs = [engine.cost(ms) for ms in (0, 500, 1500, 2500)]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[1] >= 2000  # the audio, and one second of zeros, rounded up


def test_an_unloaded_engine_can_be_loaded_again(folder: Path) -> None:
    engine = loaded(folder)
    before = engine.align(several())
    engine.unload()
    with pytest.raises(RuntimeError, match="before load"):
        engine.align(several())
    engine.load()
    assert engine.align(several()) == before
