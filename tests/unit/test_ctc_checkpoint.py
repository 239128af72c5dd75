"""A folder is a checkpoint that can be served, or it is said what is wrong with it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from align_server.engines.ctc.checkpoint import Checkpoint, FrontEnd, describe
from align_server.engines.engine import EngineLoadError
from checkpoints import KERNELS, STRIDES, change_json, write_checkpoint, write_json

if TYPE_CHECKING:
    from pathlib import Path

WAV2VEC2 = FrontEnd(KERNELS, STRIDES, (512,) * 7)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own."""
    return shutil.copytree(original, tmp_path / "model")


def unwatched(_share: float, _what: str) -> None:
    pass


def sums(folder: Path, *names: str) -> str:
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def test_a_frame_is_20_ms_and_sees_25(folder: Path) -> None:
    front_end = Checkpoint.read(folder).front_end
    assert (front_end.hop, front_end.field) == (320, 400)
    assert [front_end.frames(n) for n in (0, 399, 400, 719, 720, 16000)] == [0, 0, 1, 1, 2, 49]
    assert front_end.samples(49) <= 16000 < front_end.samples(50)


def test_the_operations_of_the_front_end_are_those_of_its_convolutions() -> None:
    assert FrontEnd((3,), (2,), (5,)).flops == 2 * 3 * 5
    assert FrontEnd((3, 4), (2, 7), (5, 6)).flops == 2 * 3 * 5 * 7 + 2 * 4 * 5 * 6
    assert 95e6 < WAV2VEC2.flops < 105e6


def test_only_models_that_do_not_see_padding_are_padded(tmp_path: Path) -> None:
    kinds = [("wav2vec2", "group"), ("wav2vec2", "layer"), ("wav2vec2-conformer", "layer")]
    folders = [write_checkpoint(tmp_path / f"{family}-{norm}", family=family, norm=norm) for family, norm in kinds]
    assert [Checkpoint.read(folder).paddable for folder in folders] == [False, True, False]


def test_whether_audio_is_normalised_is_in_either_of_two_files(folder: Path) -> None:
    assert Checkpoint.read(folder).normalise
    change_json(folder / "preprocessor_config.json", do_normalize=False)
    assert not Checkpoint.read(folder).normalise
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    assert Checkpoint.read(folder).normalise
    write_json(folder / "processor_config.json", {"feature_extractor": {"do_normalize": False}})
    assert not Checkpoint.read(folder).normalise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Wav2Vec2ForPreTraining"]}, r"names Wav2Vec2ForPreTraining; only CTC models"),
        ({"architectures": None}, "names no architecture; only CTC models"),
        ({"model_type": "parakeet_ctc"}, "has model type 'parakeet_ctc'; supported are .*wav2vec2"),
        ({"add_adapter": True}, "sets add_adapter"),
        ({"hidden_size": None}, r"does not describe the model \(KeyError\('hidden_size'\)\)"),
        ({"conv_kernel": 3}, "does not describe the model"),
        ({"num_hidden_layers": 0}, "does not describe the model"),
    ],
)
def test_a_model_that_cannot_align_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(EngineLoadError, match=message):
        Checkpoint.read(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"nowhere does not exist; name a folder"):
        Checkpoint.read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(EngineLoadError, match=r"file is not a folder; name a folder"):
        Checkpoint.read(tmp_path / "file")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"has no config\.json: it is not a checkpoint"):
        Checkpoint.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(EngineLoadError, match=r"config\.json (cannot be read as JSON|holds list).*again"):
        Checkpoint.read(folder)


def test_a_model_for_another_sample_rate_is_refused(folder: Path) -> None:
    change_json(folder / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(EngineLoadError, match=r"preprocessor_config\.json asks for audio at 8000 Hz"):
        Checkpoint.read(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineLoadError, match=r"has no model\.safetensors; copy or download"):
        Checkpoint.read(folder)


def test_pickled_weights_are_refused_with_how_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EngineLoadError, match=r"in pytorch_model\.bin and not.*python -c .*save_pretrained"):
        Checkpoint.read(folder)


def test_weights_may_be_split_over_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    with pytest.raises(EngineLoadError, match=r"has no b\.safetensors, which model\.safetensors\.index\.json names"):
        Checkpoint.read(folder)
    (folder / "b.safetensors").write_bytes(b"1234")
    checkpoint = Checkpoint.read(folder)
    assert [path.name for path in checkpoint.weights] == ["a.safetensors", "b.safetensors"]
    assert checkpoint.size_bytes == (folder / "a.safetensors").stat().st_size + 4


def test_the_revision_is_that_of_the_contents(folder: Path, original: Path) -> None:
    revision = Checkpoint.read(folder).verify(unwatched)
    assert len(bytes.fromhex(revision)) == 6
    assert Checkpoint.read(original).verify(unwatched) == revision
    (folder / "README.md").write_text("a card", encoding="utf-8")
    assert Checkpoint.read(folder).verify(unwatched) == revision


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_the_revision_changes_with_what_times_depend_on(folder: Path, name: str) -> None:
    before = Checkpoint.read(folder).verify(unwatched)
    change_json(folder / name, something="else")
    assert Checkpoint.read(folder).verify(unwatched) != before


def test_the_revision_changes_with_the_weights(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    assert (other / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert Checkpoint.read(other).verify(unwatched) != Checkpoint.read(folder).verify(unwatched)


def test_files_are_what_the_list_of_sums_says(folder: Path) -> None:
    plain = Checkpoint.read(folder).verify(unwatched)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    listed = sums(folder, "model.safetensors", "README.md") + "\n" + sums(folder, "vocab.json").replace("  ", " *")
    (folder / "SHA256SUMS").write_text(listed, encoding="utf-8")
    seen: list[tuple[float, str]] = []
    assert Checkpoint.read(folder).verify(lambda share, what: seen.append((share, what))) == plain
    assert {"checking model.safetensors", "checking README.md", "checking vocab.json"} <= {what for _, what in seen}
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_file_that_is_not_what_the_list_says_is_refused(folder: Path, name: str) -> None:
    (folder / "README.md").write_text("a card", encoding="utf-8")
    (folder / "SHA256SUMS").write_text(sums(folder, "config.json", name), encoding="utf-8")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(EngineLoadError, match=rf"{name} is not the file that SHA256SUMS lists.*download it again"):
        Checkpoint.read(folder).verify(unwatched)


def test_a_listed_file_that_is_missing_is_refused(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  gone.txt\n", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"gone\.txt cannot be read \(No such file or directory\)"):
        Checkpoint.read(folder).verify(unwatched)


@pytest.mark.parametrize("line", ["no sum", f"{'0' * 63}  config.json", f"{'0' * 64} config.json"])
def test_a_list_of_sums_that_is_none_is_refused(folder: Path, line: str) -> None:
    (folder / "SHA256SUMS").write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(EngineLoadError, match=r"SHA256SUMS, line 2, is not '<sha256>  <file>'"):
        Checkpoint.read(folder).verify(unwatched)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- audio\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: 'mit' # really\n---\n", "mit"),
        ("---\nlicense:\n- cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("---\nlanguage: en\n---\nlicense: mit\n", ""),
        ("---\nlicense:\nlanguage: en\n---\n", ""),
        ("# A model\nlicense: mit\n", ""),
        ("---\nlicense: mit\n", ""),
        ("", ""),
    ],
)
def test_the_licence_is_that_of_the_model_card(folder: Path, card: str, licence: str) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    assert describe(folder).licence == licence


def test_a_folder_is_described_by_the_size_of_its_weights(folder: Path, tmp_path: Path) -> None:
    assert describe(folder).size_bytes == (folder / "model.safetensors").stat().st_size
    assert describe(folder).languages == ()
    assert describe(tmp_path / "nowhere").size_bytes == 0


def test_describing_a_folder_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from align_server.engines.ctc.checkpoint import Checkpoint, describe\n"
        "describe(pathlib.Path(sys.argv[1])); Checkpoint.read(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
