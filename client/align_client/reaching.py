"""Reaching a server from the command line: whether one answers, starting one, and what to say where none does."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from align_client.sdk.async_client import AsyncClient

NO_SERVER: Final = 3  # exit code


async def reach(client: AsyncClient, *, start_server: bool) -> None:
    """Make sure that a server of our version answers; start one where that is wanted. Raises AlignError."""
    from align_client.sdk.errors import ServerUnavailable  # noqa: PLC0415  imports gRPC, which --help does not need

    try:
        await client.info()
    except ServerUnavailable:
        if not start_server:
            raise
        _start_server(client.address)
        await client.close()
        await client.info()


def _start_server(address: str) -> None:
    if not address.startswith("unix:"):
        raise click.UsageError(f"--start-server starts one on a unix socket of this machine, not at {address}")
    beside = Path(sys.executable).with_name("align-server")
    program = str(beside) if beside.exists() else shutil.which("align-server")
    if program is None:
        raise click.UsageError("there is no align-server here; install it with: pip install 'chatalign[server]'")
    click.echo(f"starting a server at {address}", err=True)
    done = subprocess.run(
        [program, "start", "--socket", address.removeprefix("unix:")], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        sys.exit(NO_SERVER)


def no_server(error: Exception) -> NoReturn:
    """End with the error's message."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(NO_SERVER)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What goes wrong on the way, as a message and an exit code."""
    from align_client.media.errors import MediaError  # noqa: PLC0415  as above
    from align_client.sdk.errors import AlignError, RequestRefused  # noqa: PLC0415

    try:
        yield
    except RequestRefused as error:
        raise click.UsageError(str(error)) from error
    except MediaError as error:
        raise click.ClickException(str(error)) from error
    except AlignError as error:
        no_server(error)
