"""Where a server is: `$ALIGN_SERVER`, else the socket of this user. Knows no gRPC."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def default_socket() -> Path:
    """The unix socket of this user's own server, in a folder that only this user may enter."""
    return Path(platformdirs.user_runtime_dir("chatalign")) / "align.sock"


def default_address() -> str:
    """The gRPC target that is used where none is given."""
    return os.environ.get("ALIGN_SERVER") or f"unix:{default_socket()}"
