"""Everything that can be set about a server, in one frozen object, checked when it is made.

Values come from the command line, then from $ALIGN_PREPROCESS_WORKERS and $ALIGN_DECODE_WORKERS, then from a TOML file
(`--config`), then from the defaults here.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from align_client.sdk.address import default_socket
from align_server.engines.registry import DEFAULT_MODEL, absolute
from align_server.scheduling.memory import default_limit

DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?|mps")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
SMALLEST_QUEUE_MS = 600_000
SMALLEST_CACHE_MB = 16
FROM_ENVIRONMENT = {"preprocess_workers": "ALIGN_PREPROCESS_WORKERS", "decode_workers": "ALIGN_DECODE_WORKERS"}
LONGEST_SOCKET_PATH = 107  # bytes: sun_path of Linux less its NUL
HIGHEST_PORT = 65_535
LANES_OF_A_GPU = 2  # one sends and fetches while the other computes


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
    precision: str = "auto"  # of models that can be computed in several
    lanes: int = 0  # batches computed at once, on each device; 0 means one per core on a CPU, LANES_OF_A_GPU on a GPU
    preprocess_workers: int = (
        0  # threads that get segments ready; 0 means half the cores; on a CPU none, where neither is set
    )
    decode_workers: int = 0  # threads that find the times; the same
    max_queued_ms: int = 40 * 60_000  # eight streams then have room for three full messages each
    memory_limit_mb: int = 0  # for the whole process; 0 means a share of what the machine or its container has
    idle_unload_s: float = 0.0  # without use, after which a model is unloaded; 0 means never
    metrics: str = ""  # HOST:PORT of the metrics page; empty means none
    cache_mb: int = 512  # of results on disk, which are then not computed again; 0 means none
    cache_dir: Path = field(default_factory=lambda: platformdirs.user_cache_path("chatalign") / "results")
    state_dir: Path = field(default_factory=lambda: platformdirs.user_state_path("chatalign"))  # what was learnt
    max_words: int = 4096
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_places()

    def _check_choices(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ConfigError(f"device is {self.device!r}; it can be auto, cpu, cuda, mps, or one GPU such as cuda:1")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; it can be {', '.join(PRECISIONS)}")
        if not self.models:
            raise ConfigError("no model is named; leave --model out to serve the default")
        if len(set(self.models)) < len(self.models):
            raise ConfigError(f"a model is named twice: {', '.join(self.models)}")

    def _check_numbers(self) -> None:
        if self.max_queued_ms < SMALLEST_QUEUE_MS:
            raise ConfigError(
                f"max_queued_ms is below {SMALLEST_QUEUE_MS}: the longest segment would not fit its share"
            )
        for name in ("lanes", "preprocess_workers", "decode_workers", "memory_limit_mb", "idle_unload_s", "cache_mb"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if 0 < self.cache_mb < SMALLEST_CACHE_MB:
            raise ConfigError(f"cache_mb is {self.cache_mb}; it is at least {SMALLEST_CACHE_MB}, or 0 for none")

    def _check_places(self) -> None:
        if self.listen and not self.token:
            raise ConfigError("a TCP port needs a token: set ALIGN_TOKEN for the server and for its clients")
        for flag, value in (("--listen", self.listen), ("--metrics", self.metrics)):
            _, colon, port = value.rpartition(":")
            if value and not (colon and port.isdecimal() and int(port) <= HIGHEST_PORT):
                raise ConfigError(f"{flag} takes HOST:PORT, not {value!r}")
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
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics page; without a host it is for this machine alone."""
        host, _, port = self.metrics.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)

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

    def lane_count(self, device: str) -> int:
        """How many batches are computed at once on a device; outside of CUDA a GPU has one stream for all."""
        if self.lanes:
            return self.lanes
        if device == "cpu":
            return cores()
        return LANES_OF_A_GPU if device.startswith("cuda") else 1

    def pipelined(self, device: str) -> bool:
        """Whether threads of their own get segments ready and find the times, or the lanes that compute do it all."""
        return bool(self.preprocess_workers or self.decode_workers) or device != "cpu"

    def preprocess_count(self) -> int:
        """How many threads get segments ready."""
        return self.preprocess_workers or max(1, cores() // 2)

    def decode_count(self) -> int:
        """How many threads find the times."""
        return self.decode_workers or max(1, cores() // 2)

    def memory_limit(self) -> int:
        """Bytes that the process may use."""
        return self.memory_limit_mb * 2**20 or default_limit()


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(path: Path | None, **given: Any) -> Config:
    """Put settings together; see above for what comes before what. None is not given. Raises ConfigError."""
    values = {} if path is None else _from_file(path)
    values |= _from_environment()
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        for name in ("socket", "state_dir", "cache_dir"):
            if name in values:
                values[name] = Path(values[name]).expanduser().absolute()
        if "models" in values:
            models = values["models"]
            values["models"] = tuple(map(absolute, [models] if isinstance(models, str) else models))
        return Config(token=os.environ.get("ALIGN_TOKEN", ""), **values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"a setting has the wrong type: {error}") from error


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    known = {item.name for item in fields(Config)} - {"token"}
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: there is no setting {name!r}; known are {', '.join(sorted(known))}")
    return values


def _from_environment() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, variable in FROM_ENVIRONMENT.items():
        if text := os.environ.get(variable):
            if not text.isdecimal():
                raise ConfigError(f"${variable} is {text!r}; it takes a whole number")
            values[name] = int(text)
    return values
