"""The command `align-client export` once its flags are read: one file after the other, told of on the terminal."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import click

from align_client.export.run import export
from align_client.reaching import reach, told
from align_client.report import complaints

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from align_client.export.run import AddPhones, Exported
    from align_client.export.transcript import Transcript
    from align_client.files import Job


def refuse_existing(work: Sequence[Job]) -> None:
    """Raise UsageError where a result exists."""
    existing = [job.target for job in work if job.target.exists()]
    if existing:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise click.UsageError(f"{existing[0]}{others} exists; choose another OUT, or write over it with --force")


def export_all(
    work: Sequence[Job], form: str, media_dirs: Sequence[Path], add_phones: AddPhones | None
) -> list[Exported]:
    """Export every file, and say what became of it."""
    done = []
    for job in work:
        done.append(exported := export(job, form, media_dirs, add_phones))
        click.echo(str(exported), err=not exported.utterances)
        for line in complaints(job.source, [*exported.left_out, *exported.missing], exported.warnings, most=None):
            click.echo(line, err=True)
    return done


@contextlib.contextmanager
def phones_from(
    address: str | None, model: str | None, media_dirs: Sequence[Path], *, start_server: bool
) -> Iterator[AddPhones]:
    """What asks a server for the phones of one transcript after the other; ends the program where it cannot."""
    from align_client.phones import phonetic, with_phones  # noqa: PLC0415  imports gRPC
    from align_client.sdk.async_client import AsyncClient  # noqa: PLC0415

    client = AsyncClient(address, model=model)

    async def begin() -> str:
        await reach(client, start_server=start_server)
        return await phonetic(client)

    with told(), asyncio.Runner() as runner:
        try:
            able = runner.run(begin())

            def add_phones(transcript: Transcript) -> Transcript:
                return runner.run(with_phones(client, able, transcript, media_dirs))

            yield add_phones
        finally:
            runner.run(client.close())
