"""mms-fa aligns as torchaudio computes it, spells words of any script, and says what is wrong with its weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torchaudio.pipelines import MMS_FA as TORCHAUDIO
from torchaudio.pipelines import Wav2Vec2FABundle

from align_server.engines import registry
from align_server.engines.ctc import agreement
from align_server.engines.ctc.aligner import Scored
from align_server.engines.ctc.bundle import MMS_FA
from align_server.engines.ctc.encoder import Encoder
from align_server.engines.ctc.mms import MmsEngine, read_model
from align_server.engines.ctc.packed import Packed
from align_server.engines.ctc.quantised import Quantised
from align_server.engines.ctc.romanise import Romaniser
from align_server.engines.ctc.weights import ready
from align_server.engines.engine import EngineLoadError, MissingReason, Result, Segment
from align_server.engines.precision import multiplies_bf16, multiplies_int8
from bundles import BUNDLE, loaded, state, write
from emissions import computed, prepared, several, together
from segments import PAUSE, SLOT, segment

if TYPE_CHECKING:
    from align_server.engines.engine import WordTiming

pytestmark = pytest.mark.usefixtures("home")

INT8 = pytest.param(
    "int8", marks=pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
)


@pytest.fixture(scope="module", params=["fp32", "bf16", INT8])
def engine(request: pytest.FixtureRequest, home: Path) -> MmsEngine:
    assert home.is_dir()
    return loaded(precision=str(request.param))


@pytest.fixture(scope="module")
def romaniser() -> Romaniser:
    return Romaniser(set(MMS_FA.labels[1:]))


def heard(engine: MmsEngine, item: Segment, text: str) -> Result:
    """The times of an item in whose frames a model is certain of these letters, `_` being the blank."""
    step = prepared(engine, item)
    frames = text.replace("_", "-").ljust(engine._traits.front_end.frames(len(item.pcm)), "-")
    emissions = np.full((len(frames), len(MMS_FA.labels)), 0.001, np.float32)
    emissions[range(len(frames)), [MMS_FA.labels.index(letter) for letter in frames]] = 0.9
    return engine.decode(Scored(step.plan, np.log(emissions)))


def times(result: Result) -> list[tuple[int | None, int | None]]:
    return [(word.start_ms, word.end_ms) for word in result.words]


# What it is


def test_the_bundle_is_torchaudios_to_the_letter() -> None:
    assert MMS_FA.url == TORCHAUDIO._path
    assert MMS_FA.file_name == Path(TORCHAUDIO._path).name
    assert MMS_FA.params == TORCHAUDIO._params
    assert MMS_FA.labels == TORCHAUDIO.get_labels(star=None)
    assert MMS_FA.unused == TORCHAUDIO._remove_aux_axis
    assert (TORCHAUDIO.sample_rate, TORCHAUDIO._normalize_waveform) == (16000, True)
    assert MMS_FA.paddable


@pytest.mark.parametrize(
    "set_to",
    [{"TORCH_HOME": "/a/b"}, {"XDG_CACHE_HOME": "/c"}, {"TORCH_HOME": "~/d", "XDG_CACHE_HOME": "/c"}, {}],
)
def test_the_file_is_where_torch_keeps_it(monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str]) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert Path(torch.hub.get_dir(), "checkpoints", "model.pt") == MMS_FA.path


def test_it_has_what_an_engine_has(engine: MmsEngine) -> None:
    assert (engine.name, engine.languages, engine.frame_ms, engine.max_segment_s) == ("mms-fa", (), 20, 40)
    assert (engine.device, engine.pads) == ("cpu", False)
    assert MmsEngine("cuda", bundle=BUNDLE).pads
    assert engine.size_bytes == BUNDLE.path.stat().st_size
    costs = [engine.cost(ms) for ms in (0, 1000, 10_000, 20_000)]
    assert costs[0] == 0
    assert costs[3] - 20_000 == pytest.approx(4 * (costs[2] - 10_000), abs=4)
    assert 2 * MmsEngine("cpu").cost(20_000) < MmsEngine("cpu").cost(40_000) < 3 * MmsEngine("cpu").cost(20_000)


def test_revisions_differ_with_precision_and_weights_and_with_nothing_else(empty: Path) -> None:
    write(BUNDLE)
    first = {MmsEngine("cpu", name, BUNDLE).revision for name in ("fp32", "bf16")}
    assert first == {loaded(precision=name).revision for name in ("fp32", "bf16")}
    write(BUNDLE, state(BUNDLE, seed=1))
    assert len(first | {MmsEngine("cpu", "fp32", BUNDLE).revision}) == 3
    assert empty.is_dir()


def test_describing_it_needs_neither_torch_nor_the_weights(empty: Path) -> None:
    code = (
        "import sys; from align_server.engines import registry; print(registry.describe('mms-fa'))\n"
        "assert not {'torch', 'torchaudio', 'transformers', 'uroman'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "licence='CC-BY-NC-4.0', size_bytes=0, note=" in done.stdout
    assert "no commercial use" in done.stdout
    write(MMS_FA, {})
    assert registry.describe("mms-fa").size_bytes == MMS_FA.path.stat().st_size > 0
    assert empty in MMS_FA.path.parents


def test_the_registry_makes_it_and_names_it_among_the_others() -> None:
    made = registry.create("mms-fa", "cpu")
    assert isinstance(made, MmsEngine)
    assert made._bundle is MMS_FA
    with pytest.raises(EngineLoadError, match=r"there are .*, mms-fa, .*ctc:FOLDER"):
        registry.describe("mms")


# What it computes


def test_it_computes_what_torchaudio_does(exact: MmsEngine) -> None:
    theirs = Wav2Vec2FABundle(
        BUNDLE.url, BUNDLE.params, _labels=BUNDLE.labels[1:], _sample_rate=16000, _normalize_waveform=True,
        _model_type="Wav2Vec2",
    )  # fmt: skip
    model = theirs.get_model(with_star=False, dl_kwargs={"progress": False})
    for item in several():
        with torch.inference_mode():
            expected, _ = model(torch.from_numpy(item.pcm.astype(np.float32) / 32768)[None])
        found = computed(exact, [item])[0]
        assert found.std(0).mean() > 0.1  # frames differ: it is no comparison of constants
        np.testing.assert_allclose(found, expected[0], rtol=0, atol=5e-5)


def test_bf16_keeps_weights_in_half_the_memory_and_computes_nearly_the_same(exact: MmsEngine) -> None:
    half = loaded(precision="bf16")
    assert isinstance(half._model, Encoder)
    qkv = next(iter(half._model._layers)).qkv
    assert isinstance(qkv, Packed)
    assert qkv._weight.dtype is torch.bfloat16
    assert half._model._head.weight.dtype is torch.float32
    stock = ready(read_model(BUNDLE), "aux", torch.bfloat16)  # as it is on a GPU
    kept = {name.split(".")[0]: parameter.dtype for name, parameter in stock.named_parameters()}
    assert kept == {"feature_extractor": torch.bfloat16, "encoder": torch.bfloat16, "aux": torch.float32}
    for one, other in zip(computed(exact, several()), computed(half, several()), strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(np.exp(other).sum(1), 1, atol=1e-5)
        error = np.abs(one - other)
        assert 0 < error.mean() < 0.1 * one.std()
        assert error.max() < one.std()


@pytest.mark.parametrize("precision", [INT8])
def test_int8_is_near_fp32_and_has_a_revision_of_its_own(exact: MmsEngine, precision: str) -> None:
    short = loaded(precision=precision)
    assert short.precision == "int8"
    assert isinstance(short._model, Encoder)
    layer = next(iter(short._model._layers))
    assert all(isinstance(part, Quantised) for part in (layer.qkv, layer.out, layer.inner, layer.outer))
    assert len({engine.revision for engine in (short, exact, loaded(precision="bf16"))}) == 3
    assert MmsEngine("cpu", "int8", BUNDLE).revision == short.revision
    for one, other in zip(computed(exact, several()), computed(short, several()), strict=True):
        assert 0 < agreement.disagreement(torch.from_numpy(other), torch.from_numpy(one)) < agreement.AGREEING


@pytest.mark.parametrize("precision", ["bf16", INT8])
def test_a_server_hands_its_precision_on(precision: str) -> None:
    made = registry.create("mms-fa", "cpu", precision)
    assert isinstance(made, MmsEngine)
    assert made.precision == precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalised_weights_are_computed_once(dtype: torch.dtype) -> None:
    write(BUNDLE)
    model = ready(read_model(BUNDLE), "aux", dtype)
    names = [name for name, _ in model.named_parameters()]
    assert "encoder.transformer.pos_conv_embed.conv.weight" in names
    assert not [name for name in names if "parametrizations" in name]
    assert not list(model.buffers())


def test_a_segment_has_the_same_emissions_to_the_bit_in_any_batch(engine: MmsEngine) -> None:
    batch = computed(engine, several())
    alone = [computed(engine, [item])[0] for item in several()]
    turned = computed(engine, several()[::-1])[::-1]
    assert all(map(np.array_equal, batch, alone))
    assert all(map(np.array_equal, batch, turned))
    assert engine.align(several()) == [engine.align([item])[0] for item in several()]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-5), ("bf16", 1.0)])
@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
def test_a_shared_forward_gives_what_one_alone_does(mode: str, precision: str, tolerance: float) -> None:
    bundle = replace(BUNDLE, file_name=f"{mode}.pt", params={**BUNDLE.params, "extractor_mode": mode})
    write(bundle)
    engine = loaded(bundle)
    model, came_to = engine._stock(lambda: read_model(bundle), precision)  # as it is on a GPU
    assert came_to == precision
    for one, other in zip(computed(engine, several()), together(engine, model, several()), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
        assert np.abs(np.exp(one) - np.exp(other.numpy())).mean() < 0.01


def test_precision_is_chosen_by_the_processor_unless_named(tmp_path: Path) -> None:
    cpu = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("fpu avx512f", False)):
        cpu.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : amx_bf16\n", encoding="utf-8")
        assert multiplies_bf16(cpu) is expected
    assert not multiplies_bf16(tmp_path / "nowhere")
    assert MmsEngine("cpu", bundle=BUNDLE).precision == ("bf16" if multiplies_bf16() else "fp32")
    gpu = torch.cuda.is_bf16_supported(including_emulation=False)  # false where there is none
    assert MmsEngine("cuda", bundle=BUNDLE).precision == ("bf16" if gpu else "fp32")
    assert MmsEngine("cuda", "bf16", BUNDLE).precision == "bf16"
    with pytest.raises(EngineLoadError, match="int8 is computed on the CPU alone, not on cuda"):
        MmsEngine("cuda", "int8", BUNDLE)
    with pytest.raises(EngineLoadError, match="no precision 'fp16'; there are auto, fp32, bf16 and int8"):
        MmsEngine("cpu", "fp16", BUNDLE)


# How it spells


@pytest.mark.parametrize(
    ("word", "language", "letters"),
    [
        ("Hello", "eng", "hello"),
        ("niño", "spa", "nino"),
        ("nin\u0303o", "spa", "nino"),
        ("über", "deu", "ueber"),
        ("привет", "rus", "privet"),
        ("Київ", "ukr", "kyiv"),
        ("Киев", "", "kiev"),
        ("Καλημέρα", "ell", "kalemera"),
        ("你好", "cmn", "nihao"),
        ("三个", "cmn", "sange"),
        ("二十", "cmn", "ershi"),
        ("안녕", "kor", "annyeong"),
        ("it's", "eng", "it's"),
        ("it\u2019s", "eng", "it's"),
        ("it\u02bcs", "eng", "it's"),
        ("a-b_c!", "eng", "abc"),
        ("\u0130stanbul", "tur", "istanbul"),
        ("ok", "no such code", "ok"),
    ],
)
def test_a_word_is_spelled_in_latin_letters(romaniser: Romaniser, word: str, language: str, letters: str) -> None:
    assert romaniser.spell(word, language) == (letters, "")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("42", "the model has no letters for 4, 2; write numbers as words"),
        ("4th", "the model has no letters for 4; write numbers as words"),
        ("٣", "the model has no letters for ٣; write numbers as words"),
        ("x²", "the model has no letters for ²; write numbers as words"),
        ("3个", "the model has no letters for 3; write numbers as words"),
        ("-", "it has no letters"),
        ("...", "it has no letters"),
        ("'", "it has no letters"),
        ("", "it has no letters"),
        ("\u200b", "it has no letters"),
    ],
)
def test_a_word_without_letters_says_why(romaniser: Romaniser, word: str, why: str) -> None:
    assert romaniser.spell(word, "") == ("", why)


def test_words_are_remembered_but_not_without_end(romaniser: Romaniser) -> None:
    limit = romaniser.spell.cache_info().maxsize
    assert limit is not None
    assert 1000 < limit < 1_000_000
    before = romaniser.spell.cache_info().hits
    assert romaniser.spell("again", "eng") == romaniser.spell("again", "eng")
    assert romaniser.spell.cache_info().hits > before


def test_the_blank_is_never_a_target(exact: MmsEngine) -> None:
    plan = prepared(exact, segment("a-b", "-", "c")).plan
    assert [MMS_FA.labels[token] if token < len(MMS_FA.labels) else "*" for token in plan.tokens] == [*"ab*c"]


# What times it gives


def test_a_word_ends_in_the_middle_of_the_blanks_that_follow(exact: MmsEngine) -> None:
    result = heard(exact, segment("hi", "sea", "i"), "___hi____s_ea___i")
    assert times(result)[:2] == [(62, 142), (182, 292)]
    assert result.words[0].score == pytest.approx(0.9)


def test_a_word_ends_where_the_next_begins_if_there_is_no_blank(exact: MmsEngine) -> None:
    assert times(heard(exact, segment("hi", "sea"), "hisea"))[0] == (2, 42)


def test_a_word_does_not_swallow_a_long_silence(exact: MmsEngine) -> None:
    result = heard(exact, segment("hi", PAUSE, "sea"), "hi" + "_" * 40 + "sea")
    assert times(result) == [(2, 142), (142, 842), (842, 1002)]


def test_the_last_word_ends_within_the_audio(exact: MmsEngine) -> None:
    item = segment("a", seconds=0.065)
    assert times(heard(exact, item, "_a_")) == [(22, 52)]
    assert times(heard(exact, item, "__a")) == [(42, 62)]


def test_an_unknown_sound_has_a_place_of_its_own(exact: MmsEngine) -> None:
    result = heard(exact, segment("hi", SLOT, "sea"), "__hi____b__l_a____sea")
    assert times(result)[0] == (42, 122)
    assert times(result)[1] == (162, 322)
    assert result.words[1].score == 0


def test_a_word_that_cannot_be_said_keeps_its_place_and_says_why(exact: MmsEngine) -> None:
    result = heard(exact, segment("hi", "42", "sea"), "__hi____b__l_a____sea")
    assert [word.reason for word in result.words] == [None, MissingReason.UNPRONOUNCEABLE, None]
    assert result.words[1].detail == "'42': the model has no letters for 4, 2; write numbers as words"
    assert [times(result)[i][0] for i in (0, 2)] == [42, 362]


def test_every_word_gets_times_in_order_and_within_the_audio(engine: MmsEngine) -> None:
    items = [segment("she", PAUSE, "had", SLOT, "他", PAUSE, "7", seed=seed, seconds=1.234) for seed in range(5)]
    for item, result in zip(items, engine.align(items), strict=True):
        timed: list[WordTiming] = [word for word in result.words if word.reason is None]
        assert len(timed) == 6
        edges = [edge for word in timed for edge in (word.start_ms, word.end_ms) if edge is not None]
        assert edges == sorted(edges)
        assert 0 <= edges[0] <= edges[-1] <= item.duration_ms


def test_an_unloaded_engine_can_be_loaded_again(engine: MmsEngine) -> None:
    before = engine.align(several())
    engine.unload()
    with pytest.raises(RuntimeError, match=r"MmsEngine\.compute was called before load"):
        engine.align(several())
    engine.load()
    assert engine.align(several()) == before
    engine.warm_up()
