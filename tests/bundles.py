"""A tiny model with the architecture of MMS_FA and random weights, in the place where torch keeps those of models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torchaudio.models import wav2vec2_model
from torchaudio.pipelines import MMS_FA as TORCHAUDIO

from align_server.engines.ctc.bundle import MMS_FA, Bundle
from align_server.engines.ctc.mms import MmsEngine

if TYPE_CHECKING:
    from pathlib import Path

TINY: dict[str, Any] = {
    "extractor_conv_layer_config": [
        (8, kernel, stride) for _, kernel, stride in TORCHAUDIO._params["extractor_conv_layer_config"]
    ],
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 64,
}
BUNDLE = replace(
    MMS_FA, sha256="", url="https://127.0.0.1/tiny.pt", file_name="tiny.pt", params={**MMS_FA.params, **TINY}
)


def state(bundle: Bundle, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights with the rows that nobody uses, as they are published."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = wav2vec2_model(**{**bundle.params, "aux_num_out": len(bundle.labels) + len(bundle.unused)})
        for name, parameter in model.named_parameters():  # norms start as ones, biases as zeros: none would be missed
            wide = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            torch.nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, 1.5 * wide)
    return dict(model.state_dict())


def write(bundle: Bundle, content: object = None) -> Path:
    bundle.path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state(bundle) if content is None else content, bundle.path)
    return bundle.path


def loaded(bundle: Bundle = BUNDLE, precision: str = "fp32") -> MmsEngine:
    engine = MmsEngine("cpu", precision, bundle)
    engine.load()
    return engine
