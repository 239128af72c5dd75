"""Fixtures of several modules: a hub of models that this process uses, and a cache of torch with a tiny model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants

from align_server.engines import hub as module
from align_server.engines import hub_files
from bundles import BUNDLE, loaded, write
from checkpoints import write_checkpoint
from hub_server import ID, HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from align_server.engines.ctc.mms import MmsEngine


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 47 kB."""
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "checkpoint")


@pytest.fixture
def hub(german: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one model, which this process uses with a cache of its own, as one that was just started."""
    with HubServer() as server:
        server.commit = server.add(ID, german)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(hub_files, "PAUSE_S", 0.01)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(module, "_settled", {})
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of torch, with the weights of BUNDLE; one thread, as in the server."""
    folder = tmp_path_factory.mktemp("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder))
        write(BUNDLE)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of torch without any file, in a home of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


@pytest.fixture(scope="module")
def exact(home: Path) -> MmsEngine:
    assert home.is_dir()
    return loaded()
