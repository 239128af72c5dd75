"""The synchronous client: the asynchronous one, run on a loop in a thread of its own.

All clients of a process share that one loop, because gRPC's asyncio layer wants exactly one.

>>> with Client() as client:
...     result = client.align("talk.wav", ["she", "had", "your", "dark", "suit"], language="eng")
...     print(result.words[0])
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from align_client.sdk.async_client import AsyncClient

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from align_client.corpus import FileReport
    from align_client.sdk.types import AlignResult, ModelInfo, ServerInfo, Transcript, Word

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


class Client:
    """A connection to an align-server. Use as `with`. Arguments and errors are those of AsyncClient."""

    def __init__(self, address: str | None = None, timeout: float | None = None, model: str | None = None) -> None:
        self._client = AsyncClient(address, timeout, model)

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", "Client", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        _run(self._client.close())

    def align(  # noqa: PLR0913  what may be said of a segment, by name
        self,
        audio: str | os.PathLike[str] | npt.NDArray[np.generic],
        words: Sequence[str | Word],
        *,
        language: str = "",
        sample_rate: int | None = None,
        model: str | None = None,
        phones: bool = False,
    ) -> AlignResult:
        """Align words to their audio: a path, or a mono array (int16 or float) with `sample_rate` in Hz.

        With `phones` the words come with theirs; raises RequestRefused where the model has none.
        """
        return _run(
            self._client.align(audio, words, language=language, sample_rate=sample_rate, model=model, phones=phones)
        )

    def align_chat(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> FileReport:
        """Align one CHAT file and write the result to `target`. The report says what was and what was not aligned."""
        return _run(self._client.align_chat(source, target))

    def transcribe(self, audio: str | os.PathLike[str], language: str = "") -> Transcript:
        """The words of a recording of any length; `language` is ISO 639-3, empty for the one that is heard."""
        return _run(self._client.transcribe(audio, language))

    def models(self) -> list[ModelInfo]:
        """The models that the server can serve."""
        return _run(self._client.models())

    def load_model(self, model: str) -> ModelInfo:
        """Load a model that the server was started with, and wait until it serves. Raises ModelUnavailable."""
        return _run(self._client.load_model(model))

    def unload_model(self, model: str) -> None:
        """Let the server give a model's memory back. Raises ModelUnavailable while it is in use."""
        _run(self._client.unload_model(model))

    def info(self) -> ServerInfo:
        """What the server is and how busy."""
        return _run(self._client.info())

    def is_serving(self) -> bool:
        """Whether the server's health check says that it serves."""
        return _run(self._client.is_serving())


def _run(call: Coroutine[None, None, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(call, _shared_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _shared_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603  one loop for the process is what this module is for
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="align-client", daemon=True).start()
        return _loop
