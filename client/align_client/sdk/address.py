"""Where a server is: `$ALIGN_SERVER`, else the socket of this user. Knows no gRPC."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def default_socket() -> Path:
    """The unix socket of this user's own server, in a folder that only this user may enter."""
    # A login shell has XDG_RUNTIME_DIR and a cron job has not, yet both must find the same server.
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folder = runtime if runtime.is_dir() else platformdirs.user_cache_path()
    return folder / "chatalign" / "align.sock"


def default_address() -> str:
    """The gRPC target that is used where none is given."""
    return os.environ.get("ALIGN_SERVER") or f"unix:{default_socket()}"
