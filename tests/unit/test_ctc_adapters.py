"""A checkpoint with an adapter for each language aligns each segment in its own, as transformers computes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapted import CLOSE, FILES, LETTERS, WORDS, expected, of, write
from align_server.engines.ctc import agreement
from align_server.engines.ctc.adapters import HELD, Adapters
from align_server.engines.ctc.checkpoint import Checkpoint, describe
from align_server.engines.ctc.encoder import Adapter, Encoder
from align_server.engines.ctc.engine import CtcEngine
from align_server.engines.engine import EngineLoadError, MissingReason, Result, Word
from align_server.engines.precision import multiplies_int8
from checkpoints import SPECIAL, change_json, loaded
from emissions import computed, prepared
from segments import PAUSE, SLOT, segment

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> CtcEngine:
    return loaded(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own."""
    return shutil.copytree(folder, tmp_path / "model")


def adapter_of(folder: Path, name: str) -> Path:
    return folder / f"adapter.{name}.safetensors"


def chosen(engine: CtcEngine, *words: Word) -> str:
    """The adapter for a segment of these words."""
    return prepared(engine, segment(*words)).plan.alphabet.language


def names(folder: Path) -> list[str]:
    found = Checkpoint.read(folder).adapters
    assert found is not None
    return list(found.vocabularies)


def revision(folder: Path) -> str:
    return Checkpoint.read(folder).verify(lambda _share, _what: None)


@pytest.mark.parametrize("language", WORDS)
def test_each_language_is_computed_as_transformers_does(folder: Path, engine: CtcEngine, language: str) -> None:
    (item,) = of([language])
    logits = expected(folder, engine, item, FILES.get(language, language))
    (found,) = computed(engine, [item])
    assert isinstance(engine._model, Encoder)
    np.testing.assert_allclose(found, logits.log_softmax(-1), rtol=0, atol=CLOSE)


def test_without_an_adapter_the_model_has_that_which_it_was_saved_with(engine: CtcEngine) -> None:
    (item,) = of(["eng"])
    assert isinstance(engine._model, Encoder)
    with torch.inference_mode():
        own = engine._model(torch.from_numpy(prepared(engine, item).given)).log_softmax(-1)
    np.testing.assert_array_equal(own, computed(engine, [item])[0])


def test_another_adapter_would_be_noticed(engine: CtcEngine) -> None:
    (item,) = of(["swh"])
    samples = torch.from_numpy(prepared(engine, item).given)
    languages, model = engine._languages, engine._model
    assert languages is not None
    assert isinstance(model, Encoder)
    right, wrong = languages.adapter("swh"), languages.adapter("fin")
    with torch.inference_mode():
        mixed = model(samples, Adapter(wrong.steps, right.head))
        assert agreement.disagreement(mixed, model(samples, right)) > 2 * agreement.AGREEING


@pytest.mark.parametrize("language", ["eng", "fra", "rus"])
def test_bf16_is_near_fp32_in_each_language(folder: Path, engine: CtcEngine, language: str) -> None:
    near = loaded(folder, "bf16")
    assert near.precision == "bf16"
    (item,) = of([language])
    exact = expected(folder, engine, item, language)
    (found,) = computed(near, [item])
    assert 0 < agreement.disagreement(torch.from_numpy(found), exact) < agreement.AGREEING


@pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
@pytest.mark.parametrize("language", ["eng", "rus"])
def test_int8_is_near_fp32_in_each_language(folder: Path, engine: CtcEngine, language: str) -> None:
    near = loaded(folder, "int8")
    assert near.precision == "int8"
    (item,) = of([language])
    (found,), (exact,) = computed(near, [item]), computed(engine, [item])
    assert 0 < agreement.disagreement(torch.from_numpy(found), torch.from_numpy(exact)) < agreement.AGREEING


def test_where_bf16_does_not_agree_adapters_are_in_fp32_too(
    folder: Path, engine: CtcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "AGREEING", 1e-6)  # less than rounding moves
    other = loaded(folder, "bf16")
    assert other.precision == "fp32"
    assert other.revision == engine.revision
    assert all(map(np.array_equal, computed(other, of(WORDS)), computed(engine, of(WORDS))))


def test_languages_in_one_batch_have_the_emissions_to_the_bit_that_each_has_alone(engine: CtcEngine) -> None:
    batch = of(["eng", "fra", "eng", "rus"])
    together, turned = computed(engine, batch), computed(engine, batch[::-1])[::-1]
    alone = [computed(engine, [item])[0] for item in batch]
    assert all(map(np.array_equal, together, alone))
    assert all(map(np.array_equal, together, turned))


def test_no_more_languages_are_in_memory_than_are_held_and_what_was_dropped_gives_the_same(folder: Path) -> None:
    engine = loaded(folder)
    languages = engine._languages
    assert languages is not None
    assert len(WORDS) > HELD
    first = computed(engine, of(WORDS))
    assert languages.adapter.cache_info().misses == len(WORDS)
    assert languages.adapter.cache_info().currsize == HELD
    assert all(map(np.array_equal, computed(engine, of(WORDS)), first))  # each was dropped before its turn came
    assert languages.adapter.cache_info().misses == 2 * len(WORDS)
    last = of(WORDS)[-1]
    assert np.array_equal(computed(engine, [last])[0], first[-1])
    assert languages.adapter.cache_info().misses == 2 * len(WORDS)


def test_threads_never_mix_the_adapter_of_one_language_with_the_vocabulary_of_another(folder: Path) -> None:
    engine = loaded(folder)
    items = of(WORDS)
    assert len(set(map(len, LETTERS.values()))) == len(LETTERS)
    right = [computed(loaded(folder), [item])[0] for item in items]

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(3 * len(items)) % len(items):
            item = items[i]
            word = item.words[0]
            name = FILES.get(word.language, word.language)
            step = prepared(engine, item)
            tokens = [*SPECIAL, *LETTERS[name]]
            assert "".join(tokens[token] for token in step.plan.tokens) == f"{word.text}|{word.text}"
            (scored,) = engine.compute([step])
            assert scored.emissions.shape[1] == step.plan.alphabet.size == len(tokens)
            assert np.array_equal(scored.emissions, right[i])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [None] * 4


def test_a_segment_is_in_the_language_of_most_of_its_words(engine: CtcEngine) -> None:
    hi, oui, da, hola = Word("hi", "eng"), Word("oui", "fra"), Word("да", "rus"), Word("hola", "spa")
    assert chosen(engine, oui, hi, oui) == "fra"
    assert chosen(engine, oui, hi) == "fra"
    assert chosen(engine, hi, oui) == "eng"
    assert chosen(engine, da, hi, oui, hi, da) == "rus"
    assert chosen(engine, hola, hola, oui) == "fra"
    assert chosen(engine, SLOT, PAUSE, PAUSE, oui) == "fra"


def test_words_that_name_no_language_are_in_the_default(copy: Path, engine: CtcEngine) -> None:
    assert chosen(engine, Word("hi"), Word("oui")) == "eng"
    assert chosen(engine, Word("hi"), Word("hi"), Word("oui", "fra")) == "eng"
    adapter_of(copy, "eng").unlink()
    change_json(copy / "tokenizer_config.json", target_lang="fra")
    assert chosen(CtcEngine("x", copy, "cpu"), Word("oui")) == "fra"


def test_english_is_the_default_then_what_settings_say_then_the_first(copy: Path) -> None:
    assert names(copy) == list(LETTERS)
    change_json(copy / "tokenizer_config.json", target_lang="rus")
    assert names(copy)[0] == "eng"
    adapter_of(copy, "eng").unlink()
    assert names(copy)[:2] == ["rus", "cmn-script_simplified"]
    change_json(copy / "tokenizer_config.json", target_lang=None)
    change_json(copy / "config.json", target_lang="fra")
    assert names(copy)[0] == "fra"
    change_json(copy / "config.json", target_lang="eng")
    assert names(copy)[0] == "cmn-script_simplified"


def test_languages_are_those_with_both_an_adapter_and_a_vocabulary(copy: Path) -> None:
    shutil.copy(adapter_of(copy, "fra"), adapter_of(copy, "ita"))
    adapter_of(copy, "deu").unlink()
    codes = ("eng", "cmn", "ell", "fin", "fra", "rus", "swh", "tur", "uzb")
    assert describe(copy).languages == codes
    assert CtcEngine("x", copy, "cpu").languages == codes


def test_a_language_is_found_by_its_code_by_that_of_its_script_and_by_its_macrolanguage(copy: Path) -> None:
    adapters = Adapters.find(copy, {"adapter_attn_dim": 4})
    assert adapters is not None
    assert adapters.names("fra") == ("fra",)
    assert adapters.names("cmn") == adapters.names("zho") == ("cmn-script_simplified",)
    assert adapters.names("swa") == ("swh",)
    assert adapters.names("uzb") == ("uzb-script_cyrillic", "uzb-script_latin")
    assert adapters.names("uzb-script_latin") == ("uzb-script_latin",)
    assert adapters.names("spa") == adapters.names("nor") == adapters.names("en") == ()


def test_of_several_scripts_it_is_the_one_that_spells_most_words(engine: CtcEngine) -> None:
    latin, cyrillic = Word("salom", "uzb"), Word("салом", "uzb")
    assert chosen(engine, latin, cyrillic, latin) == "uzb-script_latin"
    assert chosen(engine, cyrillic, latin, cyrillic) == "uzb-script_cyrillic"
    assert chosen(engine, latin, cyrillic) == "uzb-script_cyrillic"


def test_words_of_a_language_without_an_adapter_keep_their_place_and_say_why(engine: CtcEngine) -> None:
    (result,) = engine.align([segment(Word("hello", "eng"), Word("hola", "spa"), Word("my", "eng"))])
    assert [word.reason for word in result.words] == [None, MissingReason.UNSUPPORTED_LANGUAGE, None]
    assert result.words[1].detail == "'hola' is in 'spa', for which the model has no adapter"
    ends = [(word.start_ms, word.end_ms) for word in result.words if word.reason is None]
    assert ends == sorted(ends)


def test_a_segment_without_a_known_language_is_not_computed(engine: CtcEngine) -> None:
    result = engine.prepare(segment(Word("hola", "spa"), SLOT, Word("ciao", "ita")))
    assert isinstance(result, Result)
    assert [result.words[i].reason for i in (0, 2)] == [MissingReason.UNSUPPORTED_LANGUAGE] * 2
    assert "'spa', for which the model has no adapter" in result.words[0].detail
    assert "'ita', for which the model has no adapter" in result.words[2].detail


def test_a_word_of_another_language_is_spelled_in_the_letters_of_the_segments(engine: CtcEngine) -> None:
    item = segment(Word("oui", "fra"), Word("hello", "eng"), Word("été", "fra"), Word("привет", "rus"))
    (result,) = engine.align([item])
    assert [word.reason for word in result.words] == [None, None, None, MissingReason.UNPRONOUNCEABLE]
    assert result.words[3].detail.startswith("'привет': its vocabulary lacks п")


def test_it_warms_up_in_the_default_language(copy: Path) -> None:
    adapter_of(copy, "eng").unlink()
    engine = loaded(copy)
    assert prepared(engine, engine.probe(1000)).plan.alphabet.language == "cmn-script_simplified"
    engine.warm_up()


def test_an_unloaded_engine_holds_no_adapter_and_can_be_loaded_again(folder: Path) -> None:
    engine = loaded(folder)
    before = engine.align(of(WORDS))
    engine.unload()
    assert engine._languages is not None
    assert engine._languages.adapter.cache_info().currsize == 0
    engine.load()
    assert engine.align(of(WORDS)) == before


def test_the_size_is_that_of_the_model_and_of_as_many_adapters_as_are_held(copy: Path) -> None:
    sizes = sorted((path.stat().st_size for path in copy.glob("adapter.*.safetensors")), reverse=True)
    assert len(sizes) > HELD
    size = (copy / "model.safetensors").stat().st_size + sum(sizes[:HELD])
    assert describe(copy).size_bytes == CtcEngine("x", copy, "cpu").size_bytes == size
    for name in list(LETTERS)[1:]:
        adapter_of(copy, name).unlink()
    assert describe(copy).size_bytes == sum(path.stat().st_size for path in copy.glob("*.safetensors"))


def test_the_revision_is_that_of_the_adapters_too(copy: Path, folder: Path) -> None:
    before = revision(copy)
    assert before == revision(folder)
    (copy / "adapter.ita.safetensors").write_bytes(b"of no vocabulary")
    assert revision(copy) == before
    path = adapter_of(copy, "fra")
    weights = load_file(path)
    weights["lm_head.bias"][0] += 1
    save_file(weights, path)
    changed = revision(copy)
    assert changed != before
    path.unlink()
    assert revision(copy) not in {before, changed}


def test_the_revision_is_the_same_before_and_after_loading(folder: Path, engine: CtcEngine) -> None:
    assert CtcEngine("x", folder, "cpu", "fp32").revision == engine.revision


def test_an_adapter_that_is_not_what_the_list_of_sums_says_is_named(copy: Path) -> None:
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  adapter.fra.safetensors\n", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"adapter\.fra\.safetensors is not the file that SHA256SUMS lists"):
        loaded(copy)


def test_loading_says_which_adapter_it_checks(folder: Path) -> None:
    seen: list[str] = []
    CtcEngine("x", folder, "cpu").load(lambda _share, what: seen.append(what))
    assert {f"checking adapter.{name}.safetensors" for name in LETTERS} <= set(seen)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_an_adapter_that_is_cut_off_is_named(copy: Path, keep: int) -> None:
    path = adapter_of(copy, "tur")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EngineLoadError, match=r"adapter\.tur\.safetensors is damaged or cut off .*download it again"):
        loaded(copy)


LAYER: Final = "wav2vec2.encoder.layers.1.adapter_layer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.norm.bias": None}, rf"lacks {LAYER}\.norm\.bias"),
        ({"lm_head.weight": None}, r"lacks lm_head\.weight"),
        ({"lm_head.bias": None}, r"lacks lm_head\.bias"),
        ({"wav2vec2.encoder.layers.2.adapter_layer.norm.bias": (32,)}, r"has wav2vec2\.encoder\.layers\.2"),
        ({f"{LAYER}.linear_1.weight": (3, 32)}, rf"has {LAYER}\.linear_1\.weight of shape \[3, 32\], not \[4, 32\]"),
        ({"lm_head.bias": (20,)}, r"has lm_head\.bias of shape \[20\], not \[37\]"),
        ({"lm_head.weight": (37, 16)}, r"has lm_head\.weight of shape \[37, 16\], not \[37, 32\]"),
        ({"lm_head.weight": ()}, r"has lm_head\.weight of shape \[\]"),
    ],
)
def test_an_adapter_of_another_model_is_named(
    copy: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    path = adapter_of(copy, "tur")
    weights = load_file(path)
    for name, shape in change.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.zeros(shape)
    save_file(weights, path)
    with pytest.raises(EngineLoadError, match=rf"adapter\.tur\.safetensors {message}.* download the adapter that"):
        loaded(copy)


def test_an_adapter_with_fewer_tokens_than_the_vocabulary_is_named(copy: Path) -> None:
    shutil.copy(adapter_of(copy, "swh"), adapter_of(copy, "fra"))
    with pytest.raises(
        EngineLoadError, match=r"in 'fra', has tokens up to 39, and adapter\.fra\.safetensors only 31 tokens"
    ):
        loaded(copy)


def test_a_vocabulary_that_cannot_spell_is_named(copy: Path) -> None:
    change_json(copy / "vocab.json", fra={"<pad>": 0, "ab": 1})
    with pytest.raises(EngineLoadError, match=r"vocab\.json, in 'fra', has no single letters"):
        loaded(copy)
    change_json(copy / "vocab.json", fra={"a": 1})
    with pytest.raises(EngineLoadError, match=r"vocab\.json, in 'fra', lacks '<pad>'"):
        loaded(copy)


def test_without_any_adapter_it_is_said_which_files_are_needed(copy: Path) -> None:
    for path in copy.glob("adapter.*"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(EngineLoadError, match=r"has no adapter of any language .*such as adapter\.cmn-.*\.safetensors"):
        Checkpoint.read(copy)
    assert describe(copy).languages == ()
    assert describe(copy).size_bytes == (copy / "model.safetensors").stat().st_size


def test_an_adapter_that_changes_while_the_model_is_loaded_is_not_mixed_in(copy: Path) -> None:
    engine = loaded(copy)
    held, other = of(["fra", "rus"])
    before = computed(engine, [held])
    for name in ("fra", "rus"):
        path = adapter_of(copy, name)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert np.array_equal(computed(engine, [held])[0], before[0])
    with pytest.raises(EngineLoadError, match=r"adapter\.rus\.safetensors has changed since the model was loaded"):
        computed(engine, [other])
    adapter_of(copy, "rus").unlink()
    with pytest.raises(EngineLoadError, match=r"adapter\.rus\.safetensors cannot be read \(No such file"):
        computed(engine, [other])


def test_an_adapter_of_another_size_than_when_the_engine_was_made_is_not_used(copy: Path) -> None:
    engine = CtcEngine("x", copy, "cpu", "fp32")
    shutil.copy(adapter_of(copy, "fra"), adapter_of(copy, "swh"))
    engine.load()
    with pytest.raises(EngineLoadError, match=r"adapter\.swh\.safetensors has changed"):
        computed(engine, of(["swh"]))


def test_describing_languages_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from align_server.engines.ctc.checkpoint import describe\n"
        "assert len(describe(pathlib.Path(sys.argv[1])).languages) == 10\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.parametrize("change", [{"do_stable_layer_norm": False}, {"hidden_act": "relu"}, {"model_type": "wavlm"}])
def test_what_our_encoder_does_not_compute_is_refused(copy: Path, change: dict[str, object]) -> None:
    change_json(copy / "config.json", **change)
    with pytest.raises(EngineLoadError, match="has adapters, but not the architecture of facebook/mms-1b-all"):
        CtcEngine("x", copy, "cpu")
