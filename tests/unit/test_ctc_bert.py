"""Checkpoints of wav2vec2-BERT, which reads spectra: as transformers computes them, with and without an adapter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCTC, SeamlessM4TFeatureExtractor

from align_server.engines.ctc.aligner import Scored
from align_server.engines.ctc.checkpoint import Checkpoint, Spectra
from align_server.engines.ctc.engine import CtcEngine, _read_model
from align_server.engines.ctc.spectra import features
from align_server.engines.engine import EngineLoadError, MissingReason, Segment
from checkpoints import LETTERS, change_json, loaded, write_checkpoint
from emissions import computed, prepared, together
from segments import segment

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FAMILY = "wav2vec2-bert"
SECONDS = (1.0, 2.3, 0.7, 3.01, 0.06)
SPECTRA = Spectra(bands=80, stacked=2)


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda layers: f"adapter of {layers}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = {"add_adapter": request.param > 0, "num_adapter_layers": max(1, request.param), "output_hidden_size": 32}
    return write_checkpoint(tmp_path_factory.mktemp("bert"), family=FAMILY, hidden=32, heads=4, **adapter)


@pytest.fixture(scope="module")
def engine(folder: Path) -> CtcEngine:
    return loaded(folder)


def several() -> list[Segment]:
    return [segment("a", seconds=seconds, seed=i) for i, seconds in enumerate(SECONDS)]


def heard(item: Segment) -> npt.NDArray[np.float32]:
    return item.pcm.astype(np.float32) / np.float32(32768)


def test_features_are_those_of_transformers() -> None:
    make: Any = SeamlessM4TFeatureExtractor
    extract = make()
    for item in several():
        expected = extract(heard(item), sampling_rate=16000, return_tensors="np")
        whole = int(expected.attention_mask.sum())  # the last of an odd number has padding beside it
        found = features(heard(item), SPECTRA).reshape(-1, SPECTRA.width)
        spectra = (len(item.pcm) - 400) // 160 + 1
        assert len(found) == spectra // 2 == whole
        np.testing.assert_allclose(found, expected.input_features[0, :whole], rtol=0, atol=5e-3)


def test_it_computes_what_transformers_does(folder: Path, engine: CtcEngine) -> None:
    load: Any = AutoModelForCTC.from_pretrained
    model = load(folder).eval()
    for item, found in zip(several(), computed(engine, several()), strict=True):
        given = torch.from_numpy(features(heard(item), SPECTRA)).view(1, -1, SPECTRA.width)
        with torch.inference_mode():
            expected = model(given).logits.log_softmax(-1)[0]
        assert len(found) == 1 or found.std(0).mean() > 0.01  # frames differ: it is no comparison of constants
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_frames_are_those_that_transformers_counts(engine: CtcEngine) -> None:
    for step, found in zip(map(partial(prepared, engine), several()), computed(engine, several()), strict=True):
        assert len(found) == step.frames
    layers = engine._checkpoint.config["num_adapter_layers"] if engine._checkpoint.config["add_adapter"] else 0
    assert engine.frame_ms == 20 * 2**layers


def test_a_frame_is_where_its_spectra_are(engine: CtcEngine) -> None:
    item = segment("a", seconds=1.0)
    step = prepared(engine, item)
    emissions = np.full((step.frames, len(LETTERS)), 0.001, np.float32)
    emissions[:, 0] = 0.9  # blank
    emissions[5, [0, LETTERS.index("A")]] = 0.001, 0.9
    word = engine.decode(Scored(step.plan, np.log(emissions))).words[0]
    # Two windows of 25 ms, 10 ms apart, have their middle at 17.5 ms; what the adapter adds has the same middle.
    middle = 17.5 + 5 * engine.frame_ms
    assert (word.start_ms, word.end_ms) == pytest.approx(
        (middle - engine.frame_ms / 2, middle + engine.frame_ms / 2), abs=1
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1)])
def test_a_shared_forward_gives_what_one_alone_does(engine: CtcEngine, precision: str, tolerance: float) -> None:
    # As it is done on a GPU, here on the CPU.
    alone = computed(engine, several())
    model, came_to = engine._stock(lambda: _read_model(engine._checkpoint), precision)
    assert came_to == precision
    for one, other in zip(alone, together(engine, model, several()), strict=True):
        np.testing.assert_allclose(np.exp(one), np.exp(other.numpy()), rtol=0, atol=tolerance)


def test_a_segment_has_the_same_emissions_to_the_bit_in_any_batch(engine: CtcEngine) -> None:
    at_once = computed(engine, several())
    alone = [computed(engine, [item])[0] for item in several()]
    assert all(map(np.array_equal, at_once, alone))


def test_audio_of_less_than_a_frame_has_no_times(engine: CtcEngine) -> None:
    result = engine.align([segment("a", seconds=0.03)])[0]
    assert [word.reason for word in result.words] == [MissingReason.AUDIO_TOO_SHORT]


def test_words_get_times_in_order_and_within_the_audio(engine: CtcEngine) -> None:
    item = segment("she", "had", "your", seconds=3.0)
    at = 0
    for word in engine.align([item])[0].words:
        assert word.start_ms is not None
        assert word.end_ms is not None
        assert at <= word.start_ms < word.end_ms <= item.duration_ms
        at = word.end_ms


def test_a_feature_extractor_that_gives_something_else_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, family=FAMILY)
    change_json(folder / "preprocessor_config.json", num_mel_bins=64)
    with pytest.raises(EngineLoadError, match="input_dim is 160, but the feature extractor gives 2 times 64 values"):
        Checkpoint.read(folder)


def test_an_adapter_that_transformers_does_not_count_itself_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, family=FAMILY, add_adapter=True)
    change_json(folder / "config.json", adapter_kernel_size=5)
    with pytest.raises(EngineLoadError, match="an adapter of kernel 5 and stride 2 is not supported"):
        Checkpoint.read(folder)
