"""The command line of align-server: the only place that reads flags.

Exit codes: 0 done, 1 the server failed or could not be stopped, 2 wrong usage, 3 no server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_client import Client
    from align_server.config import Config

START_TIMEOUT_S = 180.0  # without news
NO_SERVER = 3
SERVER_PACKAGES = ("pocketsphinx", "psutil", "structlog", "torch")

FLAGS = {"config_path": "--config", "models": "--model", "memory_limit_mb": "--memory-limit", "cache_mb": "--cache"}

F = Any


if TYPE_CHECKING:
    Megabytes = click.ParamType[int]
else:
    Megabytes = click.ParamType  # takes no parameter in the oldest click that will do


class Size(Megabytes):
    """An amount of memory, in MB where no unit is given; `none` lets it be 0."""

    name = "size"
    units: ClassVar = {"": 1, "M": 1, "MB": 1, "G": 1024, "GB": 1024}

    def __init__(self, *, none: bool = False) -> None:
        self._least = 0 if none else 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """MB of what was typed."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]?B?)", str(value).upper())
        megabytes = int(float(found[1]) * self.units[found[2]]) if found and found[2] in self.units else -1
        if megabytes < self._least:
            self.fail(f"{value!r} is no amount of memory; write it like 8G or 900M", param, ctx)
        return megabytes


def _where(command: F) -> F:
    """The options that say which server is meant."""
    command = click.option(
        "--listen", metavar="HOST:PORT", help="Serve on a TCP port instead of a unix socket; needs $ALIGN_TOKEN."
    )(command)
    return click.option(
        "--socket",
        type=click.Path(path_type=Path),
        help="The unix socket; its folder is closed to other users. Default: one per user.",
    )(command)


def _what(command: F) -> F:
    """The options that say what is served."""
    options: list[Callable[[F], F]] = [
        click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file of settings."),
        click.option(
            "--device",
            metavar="[auto|cpu|cuda|cuda:N|mps]",
            help="Where models compute: cuda is every GPU that CUDA_VISIBLE_DEVICES leaves, with a copy of each model "
            "on each, cuda:1 the second of them alone; cpu keeps models off any GPU.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "int8"]),
            help="What models compute in that have a choice: auto is bf16 on CPUs and GPUs that multiply it, int8 is "
            "faster still, a little less exact, and needs a CPU with VNNI or AMX.",
        ),
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="NAME",
            help="A model to hold: one of those that `models` lists, ctc:FOLDER or whisper:FOLDER for a checkpoint on "
            "this machine, ctc:OWNER/NAME[@REVISION] or whisper:OWNER/NAME[@REVISION] for one of the Hugging Face hub, "
            "which is downloaded once; #eng,fra at its end names the languages of one with adapters. "
            "May be repeated; the first is the default.",
        ),
        click.option(
            "--lanes",
            type=click.IntRange(1, 64),
            help="Batches computed at once, on each GPU where there are several. Default: one per core, or two on a "
            "GPU, so that one is copied while the other is computed.",
        ),
        click.option(
            "--max-queued-s",
            type=click.IntRange(600),
            help="Seconds of audio that may be queued or granted: bounds how long anyone waits. Default: 2400.",
        ),
        click.option(
            "--memory-limit",
            "memory_limit_mb",
            type=Size(),
            help="Memory for the whole process, such as 8G or 900M: keeps the machine from running out. "
            "Default: three quarters of what the machine or its container has.",
        ),
        click.option(
            "--idle-unload-s",
            type=click.FloatRange(0),
            help="Seconds without use after which a model gives its memory back; it is loaded again when asked for. "
            "Default: never.",
        ),
        click.option(
            "--cache",
            "cache_mb",
            type=Size(none=True),
            help="Disk for results: the same audio and words are not computed again. 0 for none; default: 512M.",
        ),
        click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there; default: not at all."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _config(**given: Any) -> Config:
    from align_server import config

    path = given.pop("config_path", None)
    seconds = given.pop("max_queued_s", None)
    models = given.pop("models", ()) or None
    try:
        return config.load(path, models=models, max_queued_ms=None if seconds is None else seconds * 1000, **given)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from error


def _need_server_extra() -> None:
    """The base install has the client alone: say so before an import fails."""
    missing = [name for name in SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"{', '.join(missing)} not installed: this is the client alone; install the server with: "
            "pip install 'chatalign[server]'"
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chatalign")
def main() -> None:
    """One server per machine: owns each alignment model once and batches for all its clients."""


@main.command()
@_what
@_where
@click.option("-v", "--verbose", is_flag=True, help="Log every segment and every batch.")
def run(*, verbose: bool, **given: Any) -> None:
    """Serve in the foreground until Ctrl-C or SIGTERM."""
    _need_server_extra()
    config = _config(**given)
    from align_server.logs import configure
    from align_server.server import Server, StartError

    configure(verbose=verbose)
    try:
        Server(config).run()
    except StartError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_what
@_where
def start(**given: Any) -> None:
    """Start a server in the background, wait until it serves, and print its address."""
    _need_server_extra()
    from align_server.background import BackgroundError, start_in_background

    config = _config(**given)
    try:
        started = start_in_background(
            config, _run_flags(**given), START_TIMEOUT_S, lambda line: click.echo(line, err=True)
        )
    except BackgroundError as error:
        raise click.ClickException(str(error)) from error
    if not started:
        click.echo("a server is already running there", err=True)
    _tell_failed(config)
    click.echo(config.address)


def _tell_failed(config: Config) -> None:
    """Say which models the server has to do without."""
    from align_client import AlignError, Client

    with Client(config.address) as client, contextlib.suppress(AlignError):
        for model in client.models():
            if model.state == "failed":
                click.echo(f"Warning: {model.name} is not served: {model.detail}", err=True)


@main.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="The file that the server was started with."
)
@_where
def stop(**given: Any) -> None:
    """Let a server finish what it was sent, and stop it."""
    from align_server.background import BackgroundError, stop_and_wait

    config = _config(**given)
    try:
        stopped = stop_and_wait(config)
    except BackgroundError as error:
        raise click.ClickException(str(error)) from error
    if not stopped:
        click.echo(f"no server runs at {config.address}", err=True)
        sys.exit(NO_SERVER)
    click.echo(f"stopped {config.address}")


@main.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="The file that the server was started with."
)
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@_where
def status(*, watch: bool, **given: Any) -> None:
    """Show models, queue, clients and memory of a running server."""
    from rich.console import Console
    from rich.live import Live

    from align_client import AlignError, Client
    from align_server.tables import status_table

    config = _config(**given)
    console = Console()
    with Client(config.address) as client:
        try:
            if not watch:
                console.print(status_table(client.info(), client.models()))
                return
            with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
                while True:
                    live.update(status_table(client.info(), client.models()), refresh=True)
                    time.sleep(1)
        except AlignError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(NO_SERVER)
        except KeyboardInterrupt:
            return


@main.command()
@click.argument("model")
@_where
def load(model: str, **given: Any) -> None:
    """Load a model that a running server was started with, now rather than when it is first needed."""
    _tell(_config(**given), lambda client: client.load_model(_served(model)))
    click.echo(f"{model} is loaded")


@main.command()
@click.argument("model")
@_where
def unload(model: str, **given: Any) -> None:
    """Let a running server give a model's memory back; whoever needs the model next has it loaded again."""
    _tell(_config(**given), lambda client: client.unload_model(_served(model)))
    click.echo(f"{model} is unloaded")


def _served(model: str) -> str:
    """The name under which a server has that model: with the folder's whole path."""
    from align_server.engines.registry import absolute

    return absolute(model)


def _tell(config: Config, call: Callable[[Client], object]) -> None:
    from align_client import AlignError, Client
    from align_client.sdk.errors import ModelUnavailable, RequestRefused

    with Client(config.address) as client:
        try:
            call(client)
        except (RequestRefused, ModelUnavailable) as error:
            raise click.ClickException(str(error)) from error
        except AlignError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(NO_SERVER)


@main.command()
@_where
def models(**given: Any) -> None:
    """List the models that can be served here; says which are loaded where a server runs."""
    _need_server_extra()
    from rich.console import Console

    from align_client import AlignError, Client
    from align_server.engines import registry
    from align_server.engines.engine import EngineLoadError
    from align_server.tables import models_table

    config = _config(**given)
    states: dict[str, str] = {}
    with Client(config.address) as client, contextlib.suppress(AlignError):  # no server: then nothing is loaded
        states = {model.name: model.state for model in client.models()}
    names = dict.fromkeys([registry.DEFAULT_MODEL, registry.MMS, *states])
    rows = []
    for name in names:
        with contextlib.suppress(EngineLoadError):  # its folder may have gone since
            rows.append(registry.describe(name))
    Console().print(models_table(rows, states))
    click.echo(
        f"and {registry.CTC}FOLDER: any wav2vec2, wav2vec2-BERT, HuBERT or WavLM checkpoint for CTC in a local folder"
    )
    click.echo(f"and {registry.WHISPER}FOLDER or {registry.WHISPER}FILE.pt: any Whisper checkpoint on this machine")
    click.echo(
        f"and {registry.CTC}OWNER/NAME or {registry.WHISPER}OWNER/NAME: one of the Hugging Face hub, downloaded once"
    )


def _run_flags(**given: Any) -> list[str]:
    """The flags of `start` as `run` takes them, in whichever folder."""
    from align_server.engines.registry import absolute

    flags: list[str] = []
    for name, value in given.items():
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        for item in value if isinstance(value, tuple) else [value]:
            if item is not None:
                flags += [flag, str(item.absolute() if isinstance(item, Path) else absolute(str(item)))]
    return flags


if __name__ == "__main__":
    main()
