"""On other devices than the CPU segments of several languages share a batch too; done here as there, on the CPU.

A device called cpu:0 is the CPU, which the engine takes for another: models of transformers compute padded batches.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import torch

from adapted import CLOSE, FILES, WORDS, expected, of, write
from align_server.engines.ctc import agreement
from align_server.engines.ctc.adapters import HELD
from align_server.engines.ctc.engine import CtcEngine
from emissions import computed
from gpus import NEEDS_GPU

if TYPE_CHECKING:
    from pathlib import Path

CLOSE_ON_GPU: Final = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("adapted"))


def elsewhere(folder: Path, precision: str = "fp32", device: str = "cpu:0") -> CtcEngine:
    engine = CtcEngine(f"ctc:{folder}", folder, device, precision)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> CtcEngine:
    return elsewhere(folder)


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=NEEDS_GPU)])
def test_each_language_of_a_batch_is_computed_as_transformers_does(folder: Path, device: str) -> None:
    engine = elsewhere(folder, device=device)
    batch = of(WORDS)
    assert engine.pads
    for item, found in zip(batch, computed(engine, batch), strict=True):
        language = item.words[0].language
        logits = expected(folder, engine, item, FILES.get(language, language))
        close = CLOSE_ON_GPU if device == "cuda" else CLOSE
        np.testing.assert_allclose(found, logits.log_softmax(-1), rtol=0, atol=close)


def test_segments_of_one_language_share_a_forward(engine: CtcEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    languages = ["eng", "fra", "eng", "rus", "fra", "eng"]
    batch = of(languages)
    alone = [computed(engine, [item])[0] for item in batch]
    sizes: list[int] = []
    forward = engine._hidden

    def counted(model: torch.nn.Module, given: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(given))
        return forward(model, given, lengths)

    monkeypatch.setattr(engine, "_hidden", counted)
    for one, other in zip(computed(engine, batch), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE)
    assert sorted(sizes) == sorted(languages.count(language) for language in set(languages))


def test_a_language_shares_all_weights_but_its_own(engine: CtcEngine) -> None:
    computed(engine, of(["eng", "fra"]))
    model, languages = engine._model, engine._languages
    assert model is not None
    assert languages is not None
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    french = {name: weight.data_ptr() for name, weight in languages.adapter("fra").named_parameters()}
    own = {name for name in places if places[name] != french[name]}
    assert own == {name for name in places if "adapter_layer" in name or name.startswith("lm_head")}


def test_lanes_never_hear_in_the_language_of_one_another(folder: Path) -> None:
    engine = elsewhere(folder)
    assert len(WORDS) > HELD
    right = [computed(engine, [item])[0] for item in of(WORDS)]

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(right)):
            assert np.array_equal(computed(engine, [of(WORDS)[i]])[0], right[i])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [None] * 4


@pytest.mark.parametrize("language", ["eng", "fra", "rus"])
def test_bf16_is_near_fp32_in_each_language(folder: Path, engine: CtcEngine, language: str) -> None:
    near = elsewhere(folder, "bf16")
    assert near.precision == "bf16"
    (item,) = of([language])
    (found,) = computed(near, [item])
    exact = expected(folder, engine, item, language)
    assert 0 < agreement.disagreement(torch.from_numpy(found), exact) < agreement.AGREEING


def test_words_get_times(engine: CtcEngine) -> None:
    for item, result in zip(of(["eng", "fra"]), engine.align(of(["eng", "fra"])), strict=True):
        edges = [edge for word in result.words for edge in (word.start_ms, word.end_ms)]
        assert None not in edges
        assert len(edges) == 2 * len(item.words)


def test_an_unloaded_engine_holds_no_language(folder: Path) -> None:
    engine = elsewhere(folder)
    first = computed(engine, of(["fra"]))
    assert engine._languages is not None
    assert engine._languages.adapter.cache_info().currsize == 1
    engine.unload()
    assert engine._languages.adapter.cache_info().currsize == 0
    engine.load()
    assert all(map(np.array_equal, computed(engine, of(["fra"])), first))
