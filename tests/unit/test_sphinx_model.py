"""The model files are read as they are, and what is wrong with one is said."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.model import (
    BEGIN,
    END,
    INTERNAL,
    SINGLE,
    AcousticModel,
    model_folder,
    read_gaussians,
    read_phones,
    read_transitions,
    read_weights,
)

FILES = ("mdef", "means", "variances", "sendump", "transition_matrices")


@pytest.fixture(scope="module")
def model() -> AcousticModel:
    return AcousticModel.load(model_folder() / "en-us")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(model_folder() / "en-us", tmp_path / "en-us"))


def test_the_counts_are_those_of_the_en_us_model(model: AcousticModel) -> None:
    assert len(model.phones.names) == 42
    assert model.phones.names[model.phones.silence] == "SIL"
    assert [n for n, filler in zip(model.phones.names, model.phones.filler, strict=True) if filler] == [
        "+NSN+",
        "+SPN+",
        "SIL",
    ]
    assert model.phones.senones.shape == (29324, 3)
    assert len(model.phones.base) == 5126
    assert model.means.shape == model.variances.shape == (42, 3, 128, 13)
    assert model.weights.shape == (3, 5126, 128)


def test_mixture_weights_sum_to_about_one(model: AcousticModel) -> None:
    # They are quantised to a tenth of a nat and their sums drift a little; a wrong axis would be far off.
    total = model.weights.sum(-1)
    assert 0.85 < np.median(total) < 1.15
    assert total.min() > 0.5


def test_a_phone_leads_from_state_to_state_and_out(model: AcousticModel) -> None:
    chance = np.exp(model.transitions.astype(np.float64))
    np.testing.assert_allclose(chance.sum(-1), 1, atol=1e-6)
    allowed = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3)]
    assert {(int(i), int(j)) for _, i, j in np.argwhere(chance > 0)} == set(allowed)


def test_a_phone_without_context_owns_three_senones_in_a_row(model: AcousticModel) -> None:
    np.testing.assert_array_equal(model.phones.base[:126], np.repeat(np.arange(42), 3))
    np.testing.assert_array_equal(model.phones.state[:126], np.tile(np.arange(3), 42))


def test_every_triphone_has_senones_of_its_own_phone(model: AcousticModel) -> None:
    phones = model.phones
    owner = phones.base[phones.senones[phones.triphones]]
    expected = np.arange(42)[None, :, None, None, None]
    assert (owner == expected).all()


def test_a_context_in_another_word_position_backs_off_before_it_is_dropped(model: AcousticModel) -> None:
    phones = model.phones
    index = {name: i for i, name in enumerate(phones.names)}
    ah, sil, t = index["AH"], index["SIL"], index["T"]
    # A filler context counts as silence.
    assert phones.triphones[BEGIN, ah, index["+SPN+"], t] == phones.triphones[BEGIN, ah, sil, t]
    # At the edge of a word an unseen neighbour gives way to silence before all context is dropped.
    unseen = phones.triphones == np.arange(42)[:, None, None]
    speech = np.flatnonzero(~phones.filler)
    inside = unseen[INTERNAL][np.ix_(speech, speech, speech)]
    for position in (BEGIN, END, SINGLE):
        edge = unseen[position][np.ix_(speech, speech, speech)]
        assert 0 < edge.sum() <= inside.sum()
        assert not (edge & ~inside).any()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, -1])
def test_a_file_that_is_cut_off_is_named(copy: Path, name: str, keep: float) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(len(data) * keep)] if 0 < keep < 1 else data[: int(keep)])
    with pytest.raises(EngineLoadError, match=rf"{name} is not a usable model file.*pip install"):
        AcousticModel.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineLoadError, match=rf"cannot read .*{name}: No such file"):
        AcousticModel.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    with pytest.raises(EngineLoadError, match=rf"{name} is not a usable model file"):
        AcousticModel.load(copy)


@pytest.mark.parametrize("name", ["means", "variances", "transition_matrices"])
def test_a_flipped_bit_is_found_by_the_checksum(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-100] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(EngineLoadError, match="checksum"):
        AcousticModel.load(copy)


def test_another_byte_order_is_refused(copy: Path) -> None:
    data = (copy / "means").read_bytes()
    (copy / "means").write_bytes(data.replace(struct.pack("<I", 0x11223344), struct.pack(">I", 0x11223344)))
    with pytest.raises(EngineLoadError, match="byte order"):
        read_gaussians(copy / "means")


def test_files_of_different_models_do_not_mix(copy: Path) -> None:
    shutil.copy(copy / "transition_matrices", copy / "means")
    with pytest.raises(EngineLoadError, match="means"):
        AcousticModel.load(copy)


def test_the_files_can_be_read_one_by_one() -> None:
    folder = model_folder() / "en-us"
    assert read_phones(folder / "mdef").silence == 32
    assert read_weights(folder / "sendump").dtype == np.float32
    assert read_transitions(folder / "transition_matrices").shape == (42, 3, 4)
