"""Everything that can be set about a server, in one frozen object, checked when it is made.

Values come from the command line, then from a TOML file (`--config`), then from the defaults here.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from align_client.sdk.address import default_socket
from align_server.engines.registry import DEFAULT_MODEL

DEVICES = ("auto", "cpu", "cuda", "mps")
SMALLEST_QUEUE_MS = 600_000
LONGEST_SOCKET_PATH = 107  # bytes: sun_path of Linux less its NUL


class ConfigError(ValueError):
    """A setting cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Config:
    """The settings of one server. Sizes of queues are in milliseconds of audio."""

    socket: Path = field(default_factory=default_socket)
    listen: str = ""  # HOST:PORT; empty means the unix socket
    token: str = ""  # what clients over TCP must send; from $ALIGN_TOKEN, never a flag
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    device: str = "auto"
    lanes: int = 0  # batches computed at once; 0 means one per core
    max_queued_ms: int = 20 * 60_000
    max_words: int = 4096
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device is {self.device!r}; it can be {', '.join(DEVICES)}")
        if not self.models:
            raise ConfigError("no model is named; leave --model out to serve the default")
        if self.max_queued_ms < SMALLEST_QUEUE_MS:
            raise ConfigError(
                f"max_queued_ms is below {SMALLEST_QUEUE_MS}: the longest segment would not fit its share"
            )
        if self.listen and not self.token:
            raise ConfigError("a TCP port needs a token: set ALIGN_TOKEN for the server and for its clients")
        if self.listen and not self.listen.rpartition(":")[2].isdigit():
            raise ConfigError(f"--listen takes HOST:PORT, not {self.listen!r}")
        if not self.listen and len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            raise ConfigError(
                f"the socket path {self.socket} is longer than the {LONGEST_SOCKET_PATH} bytes that the system allows; "
                "give a shorter one with --socket"
            )

    @property
    def address(self) -> str:
        """The gRPC target of this server."""
        return self.listen or f"unix:{self.socket}"

    @property
    def lock_path(self) -> Path:
        """The file whose lock makes this server the only one at its address; holds the server's process id."""
        if self.listen:
            return default_socket().with_name(f"tcp-{self.listen.replace('/', '_').replace(':', '-')}.lock")
        return self.socket.with_name(self.socket.name + ".lock")

    @property
    def log_path(self) -> Path:
        """Where a server in the background writes its log."""
        return self.lock_path.with_suffix(".log")

    def lane_count(self) -> int:
        """How many batches are computed at once."""
        return self.lanes or len(os.sched_getaffinity(0))


def load(path: Path | None, **given: Any) -> Config:
    """Put settings together: those given (None = not given), over the file's, over the defaults. Raises ConfigError."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        known = {item.name for item in fields(Config)} - {"token"}
        for name in values:
            if name not in known:
                raise ConfigError(f"{path}: there is no setting {name!r}; known are {', '.join(sorted(known))}")
    values.update({name: value for name, value in given.items() if value is not None})
    if "socket" in values:
        values["socket"] = Path(values["socket"]).expanduser().absolute()
    if "models" in values:
        values["models"] = tuple(values["models"])
    try:
        return Config(token=os.environ.get("ALIGN_TOKEN", ""), **values)
    except TypeError as error:
        raise ConfigError(f"a setting has the wrong type: {error}") from error
