"""Fixtures of tests with OpenAI's tiny.en."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_server.engines.whisper.engine import WhisperEngine


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WhisperEngine]:
    """The engine with tiny.en, in each precision; one torch thread, as in the server's lanes."""
    with _one_thread():
        yield _load(str(request.param), tmp_path_factory)


@pytest.fixture(scope="module")
def exact_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WhisperEngine]:
    """The engine with tiny.en in fp32, beside the other."""
    with _one_thread():
        yield _load("fp32", tmp_path_factory)


def _load(precision: str, folders: pytest.TempPathFactory) -> WhisperEngine:
    from align_server.engines.whisper.engine import WhisperEngine
    from whispers import tiny_en

    source = tiny_en()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folders.mktemp("cache")))
        loaded = WhisperEngine("whisper:tiny.en.pt", source, "cpu", precision)
        loaded.load()
    return loaded


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
