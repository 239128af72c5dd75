"""Fixtures of tests with OpenAI's tiny.en."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_server.engines.whisper.engine import WhisperEngine


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WhisperEngine]:
    """The engine with tiny.en, in each precision; one torch thread, as in the server's lanes."""
    import torch

    from align_server.engines.whisper.engine import WhisperEngine
    from whispers import tiny_en

    source = tiny_en()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        loaded = WhisperEngine("whisper:tiny.en.pt", source, "cpu", str(request.param))
        loaded.load()
    yield loaded
    torch.set_num_threads(before)
