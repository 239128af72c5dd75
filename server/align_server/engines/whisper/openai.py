"""Checkpoints in the files that OpenAI published, `.pt`, brought once into the form that transformers writes.

Such a file is a pickle, which can run code when it is read. One is read only if its SHA-256 is that of a file that
OpenAI published, and then by a reader that makes nothing but tensors; what it holds is kept as safetensors.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs
from safetensors import SafetensorError

from align_server.engines import files
from align_server.engines.engine import EngineLoadError
from align_server.engines.whisper.languages import CODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_server.engines.whisper.size import Head

SUFFIX: Final = ".pt"
FORMAT: Final = 1  # raised with every change of what is written

# Name, SHA-256 and alignment heads, layer.head, as openai-whisper 20250625 has them in whisper/__init__.py.
PUBLISHED: Final = """
tiny.en d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03 1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4
tiny 65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9 2.2 3.0 3.2 3.3 3.4 3.5
base.en 25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead 3.3 4.7 5.1 5.5 5.7
base ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e 3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6
small.en f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872 \
6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4
small 9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794 5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5
medium.en d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f \
11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 20.14 21.12
medium 345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1 13.15 15.4 15.15 16.1 20.0 23.4
large-v1 e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a \
9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15
large-v2 81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524 \
10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 22.12 23.5 23.7 23.13 25.5 26.1 \
26.12 27.15
large-v3 e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb \
7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6
large-v3-turbo aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a 2.4 2.11 3.3 3.6 3.11 3.14
"""
# What a .pt lacks: the tokens by rank, which openai-whisper keeps in whisper/assets.
RANKS: Final = {
    "gpt2.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "multilingual.tiktoken": "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126",
}
RANKS_FROM: Final = (
    "it is in the package openai-whisper: pip download --no-deps --no-binary :all: openai-whisper==20250625, "
    "unpack it, and copy whisper/assets/{} there"
)
COMMANDS: Final = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")

_RENAMED: Final = (  # OpenAI's names of weights, and transformers'
    (".blocks.", ".layers."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".attn_ln.", ".self_attn_layer_norm."),
    (".mlp_ln.", ".final_layer_norm."),
    (".cross_attn.", ".encoder_attn."),
    (".attn.", ".self_attn."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    (".mlp.0.", ".fc1."),
    (".mlp.2.", ".fc2."),
    (".ln_post.", ".layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    (".token_embedding.", ".embed_tokens."),
    (".positional_embedding", ".embed_positions.weight"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that OpenAI published; `heads` of its decoder follow the audio."""

    name: str
    heads: tuple[Head, ...]

    @property
    def ranks(self) -> str:
        """The file of its tokens."""
        return "gpt2.tiktoken" if self.name.endswith(".en") else "multilingual.tiktoken"


def published() -> dict[str, Published]:
    """What OpenAI published, by SHA-256."""
    rows = (line.split() for line in PUBLISHED.strip().splitlines())
    return {
        sha256: Published(name, tuple((int(layer), int(head)) for layer, head in (h.split(".") for h in heads)))
        for name, sha256, *heads in rows
    }


def cache_folder() -> Path:
    """Where converted checkpoints are kept: in the user's cache, or under $XDG_CACHE_HOME."""
    return platformdirs.user_cache_path("chatalign") / "whisper"


def converted(path: Path) -> Path:
    """The folder with what the checkpoint in a .pt file holds, made now if it is not there. Raises EngineLoadError.

    The folder's SHA256SUMS, written with it, says what its files are.
    """
    try:
        sha256 = files.sha256(path)
    except OSError as error:
        raise EngineLoadError(f"{path} cannot be read ({error.strerror}); name a file, as whisper:FILE.pt") from error
    known = published()
    if sha256 not in known:
        names = ", ".join(one.name for one in known.values())
        raise EngineLoadError(
            f"{path} is not a file that OpenAI published: its SHA-256 is {sha256}, and it is a pickle, which could run "
            f"code. Known are {names}; download it again, or save the model with transformers as safetensors and name "
            "that folder, as whisper:FOLDER"
        )
    checkpoint = known[sha256]
    folder = cache_folder() / f"{checkpoint.name}-{sha256[:16]}-{FORMAT}"
    if not folder.is_dir():
        ranks = _read_ranks(path.parent / checkpoint.ranks)
        try:
            _convert(path, checkpoint, ranks, folder)
        except (OSError, SafetensorError) as error:
            raise EngineLoadError(
                f"{path} cannot be converted in {folder.parent} ({error}); make room there, or set XDG_CACHE_HOME"
            ) from error
    return folder


def _convert(path: Path, checkpoint: Published, ranks: list[bytes], folder: Path) -> None:
    import safetensors.torch  # noqa: PLC0415  slow to import: only what converts needs it
    import torch  # noqa: PLC0415  the same

    folder.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = {_renamed(name): weight.contiguous() for name, weight in found["model_state_dict"].items()}
        safetensors.torch.save_file(weights, room / files.WEIGHTS, {"format": "pt"})
        heads = {"alignment_heads": checkpoint.heads, "is_multilingual": not checkpoint.name.endswith(".en")}
        size = found["dims"]
        for name, value in (
            ("config.json", _config(size)),
            ("generation_config.json", heads),
            ("tokenizer.json", _tokenizer(ranks, languages=size["n_vocab"] - len(ranks) - 1509)),
        ):
            (room / name).write_text(json.dumps(value), encoding="utf-8")
        sums = "".join(f"{files.sha256(file)}  {file.name}\n" for file in sorted(room.iterdir()))
        (room / files.SUMS).write_text(sums, encoding="utf-8")
        room.chmod(0o755)
        room.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return f"model.{name}"


def _config(size: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "num_mel_bins": size["n_mels"],
        "max_source_positions": size["n_audio_ctx"],
        "max_target_positions": size["n_text_ctx"],
        "vocab_size": size["n_vocab"],
        "d_model": size["n_audio_state"],
        "encoder_layers": size["n_audio_layer"],
        "encoder_attention_heads": size["n_audio_head"],
        "encoder_ffn_dim": 4 * size["n_audio_state"],
        "decoder_layers": size["n_text_layer"],
        "decoder_attention_heads": size["n_text_head"],
        "decoder_ffn_dim": 4 * size["n_text_state"],
    }


def _read_ranks(path: Path) -> list[bytes]:
    """The tokens of text in a .tiktoken file, by rank. Raises EngineLoadError."""
    try:
        sha256 = files.sha256(path)
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EngineLoadError(
            f"{path} cannot be read ({error.strerror}): a .pt has no tokenizer, and needs this file beside it; "
            f"{RANKS_FROM.format(path.name)}"
        ) from error
    if sha256 != RANKS[path.name]:
        raise EngineLoadError(
            f"{path} is not what OpenAI published: its SHA-256 is {sha256}, not {RANKS[path.name]}; "
            f"{RANKS_FROM.format(path.name)}"
        )
    return [base64.b64decode(line.split()[0]) for line in lines if line]


def _tokenizer(ranks: list[bytes], languages: int) -> dict[str, Any]:
    """A tokenizer.json of tokens by rank; the special tokens, times aside, follow them."""
    special = ("endoftext", "startoftranscript", *list(CODES)[:languages], *COMMANDS)
    spelled = _letters()
    tokens = ["".join(spelled[byte] for byte in token) for token in ranks]
    merges = [["".join(spelled[byte] for byte in part) for part in pair] for pair in _merges(ranks)]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(ranks) + i,
                "content": f"<|{name}|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in enumerate(special)
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }


def _merges(ranks: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The two tokens that each longer token is made of: what merging its bytes comes to before the token itself."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    for rank, token in enumerate(ranks):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [rank_of.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[at] >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _letters() -> list[str]:
    """The character that stands for each byte in GPT-2's byte-level BPE: itself, or one past Latin-1."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]
