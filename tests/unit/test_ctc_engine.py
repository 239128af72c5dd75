"""A checkpoint in a folder aligns: as transformers computes it, with times in order, or with the reason why not."""

from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCTC, Wav2Vec2FeatureExtractor

from align_server.engines.ctc import agreement
from align_server.engines.ctc.aligner import Scored
from align_server.engines.ctc.encoder import Encoder
from align_server.engines.ctc.engine import WHOLE, CtcEngine, _read_model
from align_server.engines.engine import EngineLoadError, MissingReason, Result, Segment, Word, WordTiming
from align_server.engines.precision import chosen, multiplies_int8
from checkpoints import LETTERS, change_json, loaded, write_checkpoint
from emissions import computed, prepared, several, together
from segments import PAUSE, SLOT, noise, segment

if TYPE_CHECKING:
    from pathlib import Path


NEEDS_INT8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
FAMILIES = (
    "data2vec-audio",
    "hubert",
    "sew",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)


@pytest.fixture(scope="module", params=["group", "layer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    norm = str(request.param)
    return write_checkpoint(tmp_path_factory.mktemp(norm), norm=norm, hidden=32, heads=4)


@pytest.fixture(scope="module")
def engine(folder: Path) -> CtcEngine:
    return loaded(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own."""
    return shutil.copytree(folder, tmp_path / "model")


def reasons(result: Result) -> list[MissingReason | None]:
    return [word.reason for word in result.words]


def times(result: Result) -> list[tuple[int | None, int | None]]:
    return [(word.start_ms, word.end_ms) for word in result.words]


def heard(engine: CtcEngine, item: Segment, text: str) -> Result:
    """The times of an item in whose frames a model is certain of these letters, `_` being the blank."""
    step = prepared(engine, item)
    frames = text.replace("_", " ").ljust(len(computed(engine, [item])[0]))
    emissions = np.full((len(frames), len(LETTERS)), 0.001, np.float32)
    emissions[range(len(frames)), [LETTERS.index(c) if c != " " else 0 for c in frames]] = 0.9
    return engine.decode(Scored(step.plan, np.log(emissions)))


def test_it_has_what_an_engine_has(folder: Path, engine: CtcEngine) -> None:
    assert engine.name == f"ctc:{folder}"
    assert (engine.languages, engine.frame_ms, engine.max_segment_s) == ((), 20, 40)
    assert (engine.device, engine.pads) == ("cpu", False)
    assert engine.size_bytes == (folder / "model.safetensors").stat().st_size


def test_the_revision_is_the_same_before_and_after_loading(folder: Path, engine: CtcEngine) -> None:
    assert CtcEngine("x", folder, "cpu", "fp32").revision == engine.revision


def test_the_revision_says_in_which_precision(folder: Path, engine: CtcEngine) -> None:
    assert CtcEngine("x", folder, "cpu", "bf16").revision != engine.revision
    with pytest.raises(EngineLoadError, match="there is no precision 'fp8'"):
        CtcEngine("x", folder, "cpu", "fp8")


@pytest.mark.parametrize(
    "config",
    [
        {"family": "wavlm"},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-3},
        {"feat_extract_activation": "relu"},
        {"adapter_attn_dim": 4, "norm": "layer"},  # and one vocabulary: of one language
    ],
)
def test_what_our_encoder_does_not_have_is_computed_by_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, **config)
    engine, half = loaded(folder, "fp32"), loaded(folder, "bf16")
    assert not isinstance(engine._model, Encoder)
    assert_computes_what_transformers_does(folder, engine)
    assert not isinstance(half._model, Encoder)
    assert half.precision == "bf16"
    assert half.revision != engine.revision
    for one, other in zip(computed(half, several()), computed(engine, several()), strict=True):
        np.testing.assert_allclose(np.exp(one), np.exp(other), rtol=0, atol=0.02)


@NEEDS_INT8
def test_what_our_encoder_does_not_have_is_not_computed_in_int8(tmp_path: Path) -> None:
    engine = loaded(write_checkpoint(tmp_path, family="wavlm"), "int8")
    assert engine.precision == chosen("auto", "cpu")
    assert all(len(scored) for scored in computed(engine, several()))


def test_the_revision_says_which_way_it_is_computed_on_a_gpu(folder: Path, engine: CtcEngine) -> None:
    ways = [CtcEngine("x", folder, *way) for way in (("cuda", "fp32"), ("cuda", "bf16"), ("cpu", "bf16"))]
    assert [one.precision for one in ways] == ["fp32", "bf16", "bf16"]
    assert len({one.revision for one in [*ways, engine]}) == 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_transformers_cannot_compute_in_bf16_is_in_fp32(tmp_path: Path, device: str) -> None:
    folder = write_checkpoint(tmp_path, family="wav2vec2-conformer")
    assert CtcEngine("x", folder, device, "bf16").precision == "fp32"


def test_where_bf16_does_not_agree_with_fp32_it_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(folder, "bf16").precision == "bf16"
    monkeypatch.setattr(agreement, "AGREEING", 1e-6)  # less than rounding moves
    engine = loaded(folder, "bf16")
    assert engine.precision == "fp32"
    exact = loaded(folder, "fp32")
    assert engine.revision == exact.revision
    assert all(map(np.array_equal, computed(engine, several()), computed(exact, several())))


def test_bf16_is_near_fp32(folder: Path, engine: CtcEngine) -> None:
    near = loaded(folder, "bf16")
    assert near.precision == "bf16"
    for one, other in zip(computed(near, several()), computed(engine, several()), strict=True):
        np.testing.assert_allclose(np.exp(one), np.exp(other), rtol=0, atol=0.02)


@NEEDS_INT8
def test_int8_is_near_fp32_and_has_a_revision_of_its_own(folder: Path, engine: CtcEngine) -> None:
    short = loaded(folder, "int8")
    assert short.precision == "int8"
    assert len({short.revision, engine.revision, loaded(folder, "bf16").revision}) == 3
    for one, other in zip(computed(short, several()), computed(engine, several()), strict=True):
        np.testing.assert_allclose(np.exp(one), np.exp(other), rtol=0, atol=0.03)


@NEEDS_INT8
def test_in_int8_a_segment_has_the_same_emissions_to_the_bit_in_any_batch_order_and_thread(folder: Path) -> None:
    short = loaded(folder, "int8")
    at_once = computed(short, several())
    assert all(map(np.array_equal, at_once, [computed(short, [item])[0] for item in several()]))
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: computed(short, several()[::-1])[::-1], range(8)):
            assert all(map(np.array_equal, found, at_once))


@NEEDS_INT8
def test_where_int8_does_not_agree_with_fp32_it_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "AGREEING", 1e-6)  # less than rounding moves
    engine, exact = loaded(folder, "int8"), loaded(folder, "fp32")
    assert engine.precision == "fp32"
    assert engine.revision == exact.revision
    assert all(map(np.array_equal, computed(engine, several()), computed(exact, several())))


@NEEDS_INT8
def test_in_int8_the_weights_stay_what_they_were_when_the_file_is_written_anew(copy: Path) -> None:
    engine = loaded(copy, "int8")
    before = engine.align(several())
    (copy / "model.safetensors").write_bytes(b"")
    assert engine.align(several()) == before


def test_int8_is_refused_on_a_gpu(folder: Path) -> None:
    with pytest.raises(EngineLoadError, match="int8 is computed on the CPU alone, not on cuda"):
        CtcEngine("x", folder, "cuda", "int8")


def test_warming_up_computes_whatever_the_alphabet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = ("<pad>", "<unk>", "|", *"абвгд")
    engine = loaded(write_checkpoint(tmp_path, vocabulary=vocabulary))
    decoded: list[Scored] = []
    monkeypatch.setattr(engine, "decode", decoded.append)
    engine.warm_up()
    assert len(decoded) == 1


def test_loading_says_how_far_it_is(folder: Path) -> None:
    seen: list[tuple[float, str]] = []
    CtcEngine("x", folder, "cpu").load(lambda share, what: seen.append((share, what)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert [what for _, what in seen][-2:] == ["reading the weights", "loaded"]


def test_loading_uses_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loaded(folder)


def test_weights_of_half_precision_are_computed_in_full(copy: Path) -> None:
    path = copy / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert computed(loaded(copy), [segment("hello")])[0].dtype == np.float32


def test_it_computes_what_transformers_does(folder: Path, engine: CtcEngine) -> None:
    assert isinstance(engine._model, Encoder)
    assert_computes_what_transformers_does(folder, engine)


def assert_computes_what_transformers_does(folder: Path, engine: CtcEngine) -> None:
    model = AutoModelForCTC.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    for item in several():
        features = extractor(item.pcm.astype(np.float32) / 32768, sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            expected = model(features.input_values).logits.log_softmax(-1)[0]
        np.testing.assert_allclose(computed(engine, [item])[0], expected, rtol=0, atol=1e-6)


def test_audio_is_left_as_it_is_where_the_model_wants_that(copy: Path) -> None:
    change_json(copy / "preprocessor_config.json", do_normalize=False)
    item = segment("hello")
    step = prepared(CtcEngine("x", copy, "cpu"), item)
    assert step.given.dtype == np.float32
    np.testing.assert_array_equal(step.given, item.pcm / np.float32(32768))


def test_an_empty_batch_computes_nothing(engine: CtcEngine) -> None:
    assert engine.compute([]) == []


def test_a_segment_has_the_same_emissions_to_the_bit_in_any_batch(engine: CtcEngine) -> None:
    at_once = computed(engine, several())
    alone = [computed(engine, [item])[0] for item in several()]
    turned = computed(engine, several()[::-1])[::-1]
    assert all(map(np.array_equal, at_once, alone))
    assert all(map(np.array_equal, at_once, turned))


def test_a_segment_has_the_same_emissions_to_the_bit_in_any_thread(engine: CtcEngine) -> None:
    expected = computed(engine, several())
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: computed(engine, several()), range(8)):
            assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_forward_gives_what_one_alone_does(tmp_path: Path, family: str, norm: str) -> None:
    # As it is done on a GPU, here on the CPU.
    folder = write_checkpoint(tmp_path, family=family, norm=norm, num_conv_pos_embedding_groups=2)
    engine = loaded(folder)
    alone = computed(engine, several())
    for precision, tolerance in [("fp32", 1e-5)] if family in WHOLE else [("fp32", 1e-5), ("bf16", 0.05)]:
        model, came_to = engine._stock(lambda: _read_model(engine._checkpoint), precision)
        assert came_to == precision
        for one, other, item in zip(alone, together(engine, model, several()), several(), strict=True):
            assert len(one) == engine._checkpoint.front_end.frames(len(item.pcm))
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_on_a_gpu_too_bf16_is_not_used_where_it_does_not_agree(
    folder: Path, engine: CtcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "AGREEING", 1e-6)  # less than rounding moves
    model, precision = engine._stock(lambda: _read_model(engine._checkpoint), "bf16")
    assert precision == "fp32"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert folder.is_dir()


def test_every_word_gets_times_in_order_and_within_the_audio(engine: CtcEngine) -> None:
    items = [
        segment("she", PAUSE, "had", SLOT, "your", "dark", PAUSE, PAUSE, "suit", "7", "'", seed=seed, seconds=1.234)
        for seed in range(5)
    ]
    for item, result in zip(items, engine.align(items), strict=True):
        at = 0
        for word in result.words:
            if word.reason is None:
                assert word.start_ms is not None
                assert word.end_ms is not None
                assert at <= word.start_ms <= word.end_ms <= item.duration_ms
                at = word.end_ms
            assert 0 <= word.score <= 1


def test_words_are_where_their_letters_are_heard(engine: CtcEngine) -> None:
    item = segment("Hi", "sea", "it's")
    result = heard(engine, item, "___H_I__|_SSEEAA_|_I_TT'S__")
    assert times(result) == [(62, 122), (202, 322), (382, 502)]
    assert [word.score for word in result.words] == pytest.approx([0.9] * 3)


def test_a_word_ends_within_the_audio_even_in_its_last_frame(engine: CtcEngine) -> None:
    item = segment("a", seconds=0.025)
    assert times(heard(engine, item, "A")) == [(2, 22)]


def test_a_word_that_is_not_heard_scores_low(engine: CtcEngine) -> None:
    result = heard(engine, segment("hi", "sea"), "__HH_II_")
    assert result.words[0].score == pytest.approx(0.9)
    assert result.words[1].score < 0.1


def test_pauses_have_the_gap_between_their_neighbours(engine: CtcEngine) -> None:
    item = segment(PAUSE, "hi", PAUSE, PAUSE, "sea", PAUSE, seconds=1)
    result = heard(engine, item, "___HI___|__SEA__")
    assert times(result) == [(0, 62), (62, 102), (102, 222), (222, 222), (222, 282), (282, 1000)]
    assert [word.score for word in result.words if word.score] == pytest.approx([0.9, 0.9])


def test_an_unknown_sound_has_a_place_of_its_own(engine: CtcEngine) -> None:
    result = heard(engine, segment("hi", SLOT, "sea"), "__HI____B__L_A____SEA")
    assert times(result) == [(42, 82), (162, 282), (362, 422)]
    assert result.words[1].score == 0


def test_a_word_that_cannot_be_said_keeps_its_place_and_says_why(engine: CtcEngine) -> None:
    result = heard(engine, segment("hi", "ж8ж", "sea"), "__HI____B__L_A____SEA")
    assert reasons(result) == [None, MissingReason.UNPRONOUNCEABLE, None]
    assert result.words[1].detail == "'ж8ж': its vocabulary lacks ж, 8"
    assert [times(result)[i] for i in (0, 2)] == [(42, 82), (362, 422)]


def test_without_a_word_that_can_be_said_there_is_nothing_to_compute(engine: CtcEngine) -> None:
    result = engine.prepare(segment("88", SLOT, PAUSE, "..."))
    assert isinstance(result, Result)
    assert set(reasons(result)) == {MissingReason.UNPRONOUNCEABLE}
    assert "lacks 8" in result.words[0].detail
    assert "no letters" in result.words[3].detail
    assert engine.prepare(segment()) == Result(())


def test_digital_silence_has_no_speech(engine: CtcEngine) -> None:
    silence = Segment("silence", np.full(16000, 7, np.int16), (Word("hello"),))
    assert engine.prepare(silence) == Result.missing(silence, MissingReason.NO_SPEECH, "every sample is 7")


def test_more_letters_than_frames_are_too_short(engine: CtcEngine) -> None:
    assert engine.frame_ms == 20
    fits, short = (segment("hello", "lo", seconds=(400 + 320 * n) / 16000) for n in (7, 6))
    assert reasons(engine.align([fits])[0]) == [None, None]  # 7 letters, and a blank within "ll": no delimiter fits
    result = engine.prepare(short)
    assert isinstance(result, Result)
    assert set(reasons(result)) == {MissingReason.AUDIO_TOO_SHORT}
    assert result.words[0].detail == "145 ms of audio for words that last 165 ms at the very least"


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_audio_without_a_frame_is_too_short(engine: CtcEngine, samples: int) -> None:
    result = engine.prepare(Segment("short", noise(1)[:samples], (Word("a"),)))
    assert isinstance(result, Result)
    assert reasons(result) == [MissingReason.AUDIO_TOO_SHORT]


def test_a_model_that_gives_no_numbers_fails_on_each_item_alone(folder: Path) -> None:
    engine = loaded(folder)
    assert engine._model is not None
    healthy = engine.compute([prepared(engine, segment("hello"))])[0]
    assert isinstance(engine._model, Encoder)
    assert engine._model._head.bias is not None
    engine._model._head.bias.fill_(float("nan"))
    for scored in engine.compute([prepared(engine, item) for item in several()]):
        with pytest.raises(ArithmeticError, match="not finite numbers"):
            engine.decode(scored)
    assert reasons(engine.decode(healthy)) == [None]


def test_long_segments_cost_more_than_short_ones_of_the_same_length_together(engine: CtcEngine) -> None:
    costs = [engine.cost(ms) for ms in (0, 1000, 2000, 10_000, 20_000)]
    assert costs[0] == 0
    assert costs[1] >= 1000
    assert costs[2] > 2 * costs[1]
    assert costs[4] - 20_000 == pytest.approx(4 * (costs[3] - 10_000), abs=4)


def test_an_unloaded_engine_can_be_loaded_again(folder: Path) -> None:
    engine = loaded(folder)
    before = engine.align(several())
    engine.unload()
    with pytest.raises(RuntimeError, match="before load"):
        engine.align(several())
    engine.load()
    assert engine.align(several()) == before


def test_the_weights_stay_what_they_were_when_the_file_is_written_anew(copy: Path) -> None:
    engine = loaded(copy)
    before = engine.align(several())
    (copy / "model.safetensors").write_bytes(b"")
    assert engine.align(several()) == before


def test_a_file_that_the_list_of_sums_does_not_know_is_not_loaded(copy: Path) -> None:
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"model\.safetensors is not the file that SHA256SUMS lists"):
        loaded(copy)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_refused(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EngineLoadError, match=r"model\.safetensors is damaged or cut off .*download it again"):
        loaded(copy)


def test_weights_that_are_missing_are_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head")}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(EngineLoadError, match=r"lack 2 of the model's tensors \(lm_head\.bias, lm_head\.weight\)"):
        loaded(copy)


def test_the_weight_that_only_training_needs_may_be_missing(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    assert [weights.pop(name) for name in list(weights) if name.endswith("masked_spec_embed")]
    save_file(weights, path, {"format": "pt"})
    loaded(copy)


def test_weights_of_another_size_are_refused(copy: Path) -> None:
    change_json(copy / "config.json", intermediate_size=64)
    with pytest.raises(EngineLoadError, match=r"do not fit its config\.json"):
        loaded(copy)


def test_a_timing_is_whole(engine: CtcEngine) -> None:
    (result,) = engine.align([segment("hello", PAUSE, SLOT, "8")])
    for word in result.words:
        assert isinstance(word, WordTiming)
        assert (word.reason is None) == (word.start_ms is not None) == (word.end_ms is not None)
