"""The encoder against transformers' and torchaudio's own models on the same random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchaudio
from safetensors.torch import load_file
from structlog.testing import capture_logs
from transformers import AutoModelForCTC

from align_server.engines.ctc import agreement, encoder
from align_server.engines.ctc.encoder import Encoder, Shape, torchaudio_name
from align_server.engines.precision import floating, multiplies_int8
from checkpoints import KERNELS, STRIDES, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_INT8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor has neither VNNI nor AMX")
LENGTHS = (400, 719, 720, 16_000, 16_319, 50_123)  # samples: one frame, one, two, and around whole chunks
CLOSE = 2e-5


def shape(*, group_norm: bool, pre_norm: bool, bias: bool) -> Shape:
    """The shape of the tiny models here."""
    return Shape(
        convolutions=tuple(zip(KERNELS, STRIDES, strict=True)),
        convolution_bias=bias,
        group_norm=group_norm,
        pre_norm=pre_norm,
        layers=2,
        heads=2,
        position_groups=16,
    )


def noise(samples: int) -> torch.Tensor:
    """Audio of zero mean and unit variance, as models are given it."""
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
@pytest.mark.parametrize(("norm", "bias"), [("group", False), ("layer", True), ("group", True)])
@pytest.mark.parametrize("stable", [False, True])
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, norm: str, bias: bool, stable: bool) -> None:
    write_checkpoint(tmp_path, family=family, norm=norm, conv_bias=bias, do_stable_layer_norm=stable)
    tensors = load_file(tmp_path / "model.safetensors")
    ours = Encoder(
        shape(group_norm=norm == "group", pre_norm=stable, bias=bias),
        lambda name: tensors[torchaudio_name(name, family)],
        torch.float32,
    )
    load: Any = AutoModelForCTC.from_pretrained
    theirs = load(tmp_path).eval()
    with torch.inference_mode():
        for samples in map(noise, LENGTHS):
            torch.testing.assert_close(ours(samples), theirs(samples[None]).logits[0], atol=CLOSE, rtol=0)


def stock(*, pre_norm: bool) -> torch.nn.Module:
    """The model of torchaudio itself: large ones normalise before each step and in every convolution, base ones not."""
    make: Any = torchaudio.models.wav2vec2_model
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: torch.nn.Module = make(
            extractor_mode="layer_norm" if pre_norm else "group_norm",
            extractor_conv_layer_config=[(8, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)],
            extractor_conv_bias=pre_norm,
            encoder_embed_dim=32,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=128,
            encoder_pos_conv_groups=16,
            encoder_num_layers=2,
            encoder_num_heads=2,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=64,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=pre_norm,
            encoder_layer_drop=0.0,
            aux_num_out=29,
        )
    return model.eval()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("samples", [*LENGTHS, 1_200 * 320 + 400])  # the last has attention in several blocks of rows
def test_logits_are_those_of_torchaudio(samples: int, pre_norm: bool) -> None:
    theirs = stock(pre_norm=pre_norm)
    of = shape(group_norm=not pre_norm, pre_norm=pre_norm, bias=pre_norm)
    ours = Encoder(of, theirs.state_dict().__getitem__, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(noise(samples)), theirs(noise(samples)[None])[0][0], atol=CLOSE, rtol=0)


def test_bf16_is_as_near_as_the_stock_model_in_bf16() -> None:
    theirs = stock(pre_norm=True)
    of = shape(group_norm=False, pre_norm=True, bias=True)
    near = Encoder(of, theirs.state_dict().__getitem__, torch.bfloat16)
    samples = noise(40_000)
    with torch.inference_mode():
        exact, ours = theirs(samples[None])[0][0], near(samples)
        stock_bf16 = theirs.bfloat16()(samples[None].bfloat16())[0][0].float()
    assert ours.dtype is torch.float32
    assert 0 < (ours - exact).abs().mean() < 1.5 * (stock_bf16 - exact).abs().mean()


@NEEDS_INT8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_int8_is_about_as_near_as_bf16(pre_norm: bool, dtype: torch.dtype) -> None:
    theirs = stock(pre_norm=pre_norm)
    of = shape(group_norm=not pre_norm, pre_norm=pre_norm, bias=pre_norm)
    weights = theirs.state_dict().__getitem__
    short, half = Encoder(of, weights, dtype, quantised=True), Encoder(of, weights, torch.bfloat16)
    samples = noise(40_000)
    with torch.inference_mode():
        exact, ours, near = theirs(samples[None])[0][0], short(samples), half(samples)
    assert ours.dtype is torch.float32
    assert 0 < (ours - exact).abs().mean() < 3 * (near - exact).abs().mean()


@NEEDS_INT8
def test_where_a_precision_does_not_agree_the_next_finer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "finer", lambda name: {"int8": "bf16", "bf16": "fp32"}[name])
    weights = stock(pre_norm=True).state_dict().__getitem__
    of = shape(group_norm=False, pre_norm=True, bias=True)
    exact = Encoder(of, weights, torch.float32)(noise(4000))
    moved: dict[str, float] = {"int8": 1.0}

    def found(logits: torch.Tensor, _exact: torch.Tensor) -> float:
        return moved["int8"] if (logits - short).abs().max() == 0 else moved.get("bf16", 0.0)

    probe = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        short = Encoder(of, weights, floating("int8"), quantised=True)(probe)
    monkeypatch.setattr(agreement, "disagreement", found)
    with capture_logs() as logs:
        assert encoder.read(of, weights, "int8")[1] == "bf16"
    (line,) = logs
    assert (line["event"], line["precision"]) == ("computing in a finer precision", "bf16")
    assert line["because"] == "in int8 100% of the probability of a frame is elsewhere"
    moved["bf16"] = 1.0
    with torch.inference_mode():
        found_exact, precision = encoder.read(of, weights, "int8")
        assert precision == "fp32"
        assert torch.equal(found_exact(noise(4000)), exact)


def test_a_missing_tensor_is_named() -> None:
    nothing: dict[str, torch.Tensor] = {}
    with pytest.raises(KeyError, match=r"feature_extractor\.conv_layers\.0"):
        Encoder(shape(group_norm=False, pre_norm=True, bias=True), nothing.__getitem__, torch.float32)


def test_disagreement_is_the_share_of_probability_that_moved() -> None:
    exact = torch.tensor([[0.0, 0.0], [9.0, -9.0]])
    assert agreement.disagreement(exact, exact) == 0
    assert agreement.disagreement(exact.flip(1), exact) == pytest.approx(0.5, abs=1e-6)
    assert agreement.disagreement(exact + float("nan"), exact) == 1
    assert agreement.disagreement(exact, exact + float("inf")) == 0
