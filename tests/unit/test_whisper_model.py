"""Our encoder, decoder, spectrogram and time warping compute what others do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from align_server.engines.whisper.align import _smoothed, _warped, first_frames
from align_server.engines.whisper.checkpoint import Checkpoint
from align_server.engines.whisper.engine import _read_model
from align_server.engines.whisper.mel import log_mel
from whispers import write_whisper

if TYPE_CHECKING:
    from pathlib import Path

    from align_server.engines.whisper.model import Whisper

TOKENS = torch.tensor([[260, 261, 264, 265, 7, 70, 99, 150, 3, 259], [260, 262, 264, 265, 1, 2, 3, 4, 5, 259]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    return model.eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> Whisper:
    return _read_model(Checkpoint.read(folder), torch.float32)


def mel() -> torch.Tensor:
    return torch.randn(2, 80, 400, generator=torch.Generator().manual_seed(0))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_encoder_computes_what_that_of_transformers_does(model: Whisper, reference: Any) -> None:
    close(model.encoder(mel()), reference.model.encoder(mel()).last_hidden_state)


@torch.inference_mode()
def test_a_shorter_context_takes_the_first_positions(model: Whisper, reference: Any) -> None:
    short = model.encoder(mel()[:, :, :100])
    assert short.shape == (2, 50, 32)
    positions = reference.model.encoder.embed_positions.weight
    close(model.encoder.embed_positions.weight[:50], positions[:50])


@torch.inference_mode()
def test_the_decoder_computes_what_that_of_transformers_does(model: Whisper, reference: Any) -> None:
    theirs = reference(input_features=mel(), decoder_input_ids=TOKENS, output_attentions=True)
    heads = ((0, 2), (2, 1), (2, 3))
    states, scores = model.decoder(TOKENS, model.encoder(mel()), heads)
    close(model.decoder.logits(states), theirs.logits)
    assert scores.shape == (2, 3, 10, 200)
    for i, (layer, head) in enumerate(heads):
        close(scores[:, i].softmax(-1), theirs.cross_attentions[layer][:, head])


@torch.inference_mode()
def test_nothing_looks_at_the_tokens_after_it(model: Whisper) -> None:
    audio = model.encoder(mel())
    states, scores = model.decoder(TOKENS, audio, ((2, 1),))
    fewer, less = model.decoder(TOKENS[:, :6], audio, ((2, 1),))
    close(states[:, :6], fewer)
    close(scores[:, :, :6], less)


def test_weights_are_read_into_the_precision_that_is_wanted(folder: Path) -> None:
    model = _read_model(Checkpoint.read(folder), torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == 1


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.5, 3.217])
def test_the_spectrogram_is_that_of_transformers(bands: int, seconds: float) -> None:
    rng = np.random.default_rng(1)
    pcm = (rng.normal(0, 3000, round(16000 * seconds)) * np.linspace(0, 1, round(16000 * seconds))).astype(np.int16)
    make: Any = WhisperFeatureExtractor  # has no types
    theirs = make(feature_size=bands)(
        pcm.astype(np.float32) / 32768, sampling_rate=16000, return_tensors="pt"
    ).input_features[0]
    ours = log_mel(pcm, 480_000, bands)
    assert ours.shape == (bands, 3000)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_zeros_after_the_audio_do_not_change_its_spectrogram() -> None:
    pcm = np.random.default_rng(2).normal(0, 3000, 16000).astype(np.int16)
    torch.testing.assert_close(log_mel(pcm, 32_000, 80)[:, :99], log_mel(pcm, 64_000, 80)[:, :99], rtol=0, atol=1e-5)


def cheapest(costs: npt.NDArray[np.float64]) -> tuple[float, list[int]]:
    """The cost of the best path, and the first column of each of its rows, by trying every way back."""
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        for column in range(columns):
            before = min(total[row, column], total[row, column + 1], total[row + 1, column])
            total[row + 1, column + 1] = costs[row, column] + before
    firsts = [0] * rows
    row, column = rows, columns
    while row > 0:
        firsts[row - 1] = column - 1
        steps = [(row - 1, column - 1), (row, column - 1), (row - 1, column)]
        row, column = min(steps, key=lambda step: total[step])
    return float(total[-1, -1]), firsts


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 30), (30, 5), (17, 60)])
@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest(shape: tuple[int, int], seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=shape)
    assert _warped(costs).tolist() == cheapest(costs)[1]


def test_of_paths_that_cost_the_same_the_one_that_steps_to_both_is_taken() -> None:
    assert _warped(np.zeros((3, 3))).tolist() == [0, 1, 2]
    assert _warped(np.zeros((2, 4))).tolist() == cheapest(np.zeros((2, 4)))[1]


@pytest.mark.parametrize("frames", [3, 4, 7, 40])
def test_the_median_is_taken_over_mirrored_edges(frames: int) -> None:
    values = np.random.default_rng(frames).normal(size=(2, 3, frames)).astype(np.float32)
    expected = values
    if frames > 3:
        padded = np.pad(values, ((0, 0), (0, 0), (3, 3)), mode="reflect")
        expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=-1), axis=-1)
    np.testing.assert_array_equal(_smoothed(values, 7), expected)


def test_tokens_begin_where_heads_turn_to_them() -> None:
    weights = np.full((2, 6, 60), 0.001, np.float32)
    for token, start in enumerate((0, 0, 10, 25, 40, 55)):
        weights[:, token, start : start + 15] = 0.06
    assert first_frames(weights, 1).tolist() == [0, 10, 25, 40, 55]


def test_attention_that_is_no_number_is_an_error() -> None:
    weights = np.full((1, 4, 10), np.nan, np.float32)
    with pytest.raises(ArithmeticError, match="not finite numbers"):
        first_frames(weights, 1)
