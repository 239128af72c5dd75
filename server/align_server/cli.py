"""The command line of align-server: the only place that reads flags.

Exit codes: 0 done, 1 the server failed or could not be stopped, 2 wrong usage, 3 no server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.config import Config

START_TIMEOUT_S = 180.0
NO_SERVER = 3
SERVER_PACKAGES = ("pocketsphinx", "psutil", "structlog", "torch")

F = Any


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
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            help="Where models compute; cpu keeps them off any GPU.",
        ),
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="NAME",
            help="A model to hold; may be repeated; the first is the default.",
        ),
        click.option("--lanes", type=click.IntRange(1, 64), help="Batches computed at once; default: one per core."),
        click.option(
            "--max-queued-s",
            type=click.IntRange(600),
            help="Seconds of audio that may be queued or granted: bounds the server's memory. Default: 1200.",
        ),
    ]
    for option in options:
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
@click.option("-v", "--verbose", is_flag=True, help="Log every batch.")
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
        started = start_in_background(config, _run_flags(**given), START_TIMEOUT_S)
    except BackgroundError as error:
        raise click.ClickException(str(error)) from error
    if not started:
        click.echo("a server is already running there", err=True)
    click.echo(config.address)


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

    from align_client import AlignError, Client
    from align_server.tables import status_table

    config = _config(**given)
    console = Console()
    with Client(config.address) as client:
        try:
            while True:
                console.print(status_table(client.info(), client.models()))
                if not watch:
                    return
                time.sleep(1)
        except AlignError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(NO_SERVER)
        except KeyboardInterrupt:
            return


@main.command()
@_where
def models(**given: Any) -> None:
    """List the models that can be served here; says which are loaded where a server runs."""
    _need_server_extra()
    from rich.console import Console

    from align_client import AlignError, Client
    from align_server.engines import registry
    from align_server.tables import models_table

    config = _config(**given)
    states: dict[str, str] = {}
    with Client(config.address) as client, contextlib.suppress(AlignError):  # no server: then nothing is loaded
        states = {model.name: model.state for model in client.models()}
    Console().print(models_table(registry.available(), states))


def _run_flags(**given: Any) -> list[str]:
    """The flags of `start` as `run` takes them."""
    flags: list[str] = []
    for name, value in given.items():
        flag = {"config_path": "--config", "models": "--model"}.get(name, f"--{name.replace('_', '-')}")
        for item in value if isinstance(value, tuple) else [value]:
            if item is not None:
                flags += [flag, str(item.absolute() if isinstance(item, Path) else item)]
    return flags


if __name__ == "__main__":
    main()
