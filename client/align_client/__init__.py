"""chatalign's client: word times for recordings and CHAT transcripts from a running align-server.

>>> from align_client import Client
>>> with Client() as client:
...     result = client.align("talk.wav", ["she", "had", "your", "dark", "suit"], language="eng")
...     report = client.align_chat("talk.cha", "out/talk.cha")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align_client.corpus import FileReport
    from align_client.media.errors import MediaError
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.client import Client
    from align_client.sdk.errors import AlignError
    from align_client.sdk.types import (
        AlignResult,
        MissingReason,
        ModelInfo,
        Phone,
        ServerInfo,
        Word,
        WordKind,
        WordTiming,
    )

__all__ = [
    "AlignError",
    "AlignResult",
    "AsyncClient",
    "Client",
    "FileReport",
    "MediaError",
    "MissingReason",
    "ModelInfo",
    "Phone",
    "ServerInfo",
    "Transcript",
    "Word",
    "WordKind",
    "WordTiming",
]

# Loaded when first used: `align-client --help` must not wait for gRPC.
_HOMES = {
    "AlignError": "sdk.errors",
    "AsyncClient": "sdk.async_client",
    "Client": "sdk.client",
    "FileReport": "corpus",
    "MediaError": "media.errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'sdk.types')}"), name)
