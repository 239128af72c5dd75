"""Small CTC checkpoints with random weights, written as transformers writes real ones.

For tests and benchmarks: speed and memory do not depend on the values of weights. Knows nothing of pytest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypedDict

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2ForCTC

from align_server.engines.ctc.engine import CtcEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>", "|")
LETTERS: Final = (*SPECIAL, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")  # as facebook/wav2vec2-base-960h has them
KERNELS: Final = (10, 3, 3, 3, 3, 2, 2)
STRIDES: Final = (5, 2, 2, 2, 2, 2, 2)


class Size(TypedDict):
    """What `write_checkpoint` needs to know of a model's size."""

    hidden: int
    layers: int
    heads: int
    norm: str
    channels: int


TINY: Final = Size(hidden=16, layers=2, heads=2, norm="group", channels=8)
BASE: Final = Size(hidden=768, layers=12, heads=12, norm="group", channels=512)  # wav2vec2-base: 95M weights, 378 MB


def write_checkpoint(
    folder: Path,
    *,
    hidden: int = TINY["hidden"],
    layers: int = TINY["layers"],
    heads: int = TINY["heads"],
    norm: str = TINY["norm"],
    channels: int = TINY["channels"],
    seed: int = 0,
    family: str = "wav2vec2",
    vocabulary: Sequence[str] = LETTERS,
    **config: Any,
) -> Path:
    """Write a model of that size, its tokenizer and its feature extractor into `folder`, and return the folder.

    `norm` is that of the first layers: "group", as in base models, or "layer", as in large ones. `family` is a model
    type of transformers; `config` goes to its configuration. Equal arguments write equal files.
    """
    settings = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "conv_dim": (channels,) * len(KERNELS),
        "conv_kernel": KERNELS,
        "conv_stride": STRIDES,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "conv_bias": norm == "layer",
        "vocab_size": len(vocabulary),
        "pad_token_id": vocabulary.index("<pad>"),
        "num_ctc_classes": len(vocabulary),  # UniSpeech's name for vocab_size
    }
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
    if family == "wav2vec2-bert":
        settings = {key: value for key, value in settings.items() if not key.startswith(("conv_", "feat_"))}
        extractor = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 80, "stride": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make: Any = AutoModelForCTC.from_config  # has no types
        model = make(AutoConfig.for_model(family, **(settings | config)))
    model.save_pretrained(folder)
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>"})
    write_json(folder / "preprocessor_config.json", extractor)
    return folder


def write_adapted(
    folder: Path, languages: Mapping[str, str], *, inner: int = 4, hidden: int = 32, seed: int = 0, **config: Any
) -> Path:
    """Write a model with an adapter and a vocabulary for each language, as facebook/mms-1b-all has them.

    `languages` has the letters of each, by the names of the files. Adapters have `inner` channels, and weights so large
    that those of another language are noticed. The model itself is saved with those of the first. `config` goes to
    `write_checkpoint`.
    """
    vocabularies = {name: (*SPECIAL, *letters) for name, letters in languages.items()}
    first = next(iter(languages))
    write_checkpoint(
        folder,
        hidden=hidden,
        norm="layer",
        seed=seed,
        vocabulary=vocabularies[first],
        adapter_attn_dim=inner,
        **config,
    )
    load: Any = Wav2Vec2ForCTC.from_pretrained  # has no types
    model = load(folder)
    with torch.random.fork_rng():
        for i, (name, vocabulary) in enumerate(vocabularies.items()):
            torch.manual_seed(1000 * (seed + 1) + i)
            model.lm_head = torch.nn.Linear(hidden, len(vocabulary))
            weights = model._get_adapters()
            for key, weight in weights.items():
                torch.nn.init.normal_(weight, mean=float(key.endswith("norm.weight")), std=0.2)
            save_file({key: weight.data for key, weight in weights.items()}, folder / f"adapter.{name}.safetensors")
            if name == first:
                model.save_pretrained(folder)
    write_json(
        folder / "vocab.json",
        {name: {text: i for i, text in enumerate(vocabulary)} for name, vocabulary in vocabularies.items()},
    )
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one of a checkpoint's small files."""
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """Change settings in one of a checkpoint's small files; None takes one out."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: setting for key, setting in value.items() if setting is not None})


def loaded(folder: Path, precision: str = "fp32") -> CtcEngine:
    """The engine of a checkpoint, ready to compute on the CPU."""
    engine = CtcEngine(f"ctc:{folder}", folder, "cpu", precision)
    engine.load()
    return engine
