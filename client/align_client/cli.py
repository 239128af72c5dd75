"""The command line of align-client: the only place that reads flags.

Exit codes: 0 everything aligned, 1 something was not (the report says what), 2 wrong usage, 3 no server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from align_client.export import PHONES, SUFFIXES
from align_client.reaching import NO_SERVER, no_server, reach, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align_client.files import Job
    from align_client.progress import Lines
    from align_client.recognition import Recording
    from align_client.records import Records
    from align_client.report import FileReport
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.types import AlignResult

INCOMPLETE = 1
WRONG = 2
M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE_BUFFER = 64 * 1024  # bytes; two seconds of audio

F = Any


def _server(command: F) -> F:
    """The options that say which server is asked."""
    command = click.option("--model", metavar="NAME", help="The model to align with; default: the server's.")(command)
    command = click.option(
        "--start-server", is_flag=True, help="Start a server when none answers there (needs the [server] extra)."
    )(command)
    return click.option(
        "--server",
        "address",
        metavar="ADDRESS",
        help="unix:/path/to.sock or host:port; default: $ALIGN_SERVER, else your own.",
    )(command)


media_dir = click.option(
    "--media-dir",
    "media_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder to look for recordings in, after the transcript's own; may be repeated.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chatalign")
def main() -> None:
    """Put word times into CHAT transcripts, with a running align-server."""


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The folder for the results; a folder INPUT's tree is kept."
)
@click.option("--in-place", is_flag=True, help="Write each result over its transcript.")
@_server
@media_dir
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Files worked on at once.")
@click.option("--no-wor", is_flag=True, help="Only add missing time bullets; write no %wor tiers.")
@click.option("--force", is_flag=True, help="Also do those again whose results are there and right.")
@click.option("--redo", is_flag=True, help="Also replace %wor tiers that are whole, corrected by hand or not.")
@click.option("--adjust-bullets", is_flag=True, help="Widen bullets that words reach out of; never narrow one.")
@click.option(
    "--utr",
    type=click.Choice(["auto", "whisper", "off"]),
    default="auto",
    show_default=True,
    help="Utterances without a time bullet: look for them in the recording with the model that aligns, or among the "
    "words that the server's Whisper model hears there, or leave them.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write what was and was not aligned, as JSON."
)
def align(
    *,
    inputs: tuple[str, ...],
    out: Path | None,
    in_place: bool,
    address: str | None,
    start_server: bool,
    model: str | None,
    media_dirs: tuple[Path, ...],
    jobs: int,
    no_wor: bool,
    force: bool,
    redo: bool,
    utr: str,
    adjust_bullets: bool,
    report: Path | None,
) -> None:
    """Align transcripts and write them with word times.

    INPUT is a .cha file, a folder, or @list.txt with one of these a line. Nothing but time bullets and %wor tiers
    changes in a file.

    A result that is there is left as it is, unless it, its transcript, the recording, the model or the options have
    changed since: a run that was broken off goes on where it stopped. An utterance whose %wor tier has a time for
    each of its words keeps it.
    """
    from align_client import corpus
    from align_client.records import Records
    from align_client.sdk.async_client import AsyncClient

    if (out is None) == (not in_place):
        raise click.UsageError("say where the results go: either -o OUT or --in-place")
    work = _jobs(inputs, out, media_dirs)
    _map_large_buffers()
    options = corpus.Options(
        wor=not no_wor, media_dirs=media_dirs, jobs=jobs, force=force, redo=redo, utr=utr, adjust_bullets=adjust_bullets
    )
    started = time.monotonic()
    with Records() as records:
        with _progress(len(work)) as progress:
            client = AsyncClient(address, model=model)
            reports = asyncio.run(_align(work, options, progress, records, client, start_server=start_server))
        if records.warning:
            click.echo(f"warning: {records.warning}", err=True)
    _finish(reports, report, time.monotonic() - started)


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@media_dir
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the findings as JSON.")
def check(*, inputs: tuple[str, ...], media_dirs: tuple[Path, ...], report: Path | None) -> None:
    """Say what would be aligned and what not, and why; needs no server, writes no transcript."""
    from align_client import corpus
    from align_client.progress import findings

    work = _jobs(inputs, None, media_dirs)
    reports = []
    started = time.monotonic()
    for job in work:
        found = corpus.inspect(job.source, corpus.Options(media_dirs=media_dirs))
        reports.append(found)
        click.echo(findings(found))
    _write_report(reports, report, time.monotonic() - started)
    sys.exit(0 if all(found.is_complete for found in reports) else INCOMPLETE)


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--format", "form", type=click.Choice(list(SUFFIXES)), required=True, help="What to write.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder for the results; a folder INPUT's tree is kept. For one transcript also the file to write.",
)
@click.option("--force", is_flag=True, help="Write over results that exist.")
@click.option("--phones", is_flag=True, help=f"With the phones of each word ({', '.join(PHONES)}); asks a server.")
@media_dir
@_server
def export(
    *,
    inputs: tuple[str, ...],
    form: str,
    out: Path,
    force: bool,
    phones: bool,
    media_dirs: tuple[Path, ...],
    address: str | None,
    start_server: bool,
    model: str | None,
) -> None:
    """Write transcripts that have times as Praat, ELAN, subtitle, CSV or JSON files; only phones need a server.

    INPUT is a .cha file with time bullets and %wor tiers, as `align` writes them, a folder, or @list.txt with one of
    these a line. ELAN's files (eaf) look for the recording, to link it.

    With --phones a server aligns the words again, and theirs are fitted into the times that %wor has. That takes the
    recording, and a model that has phones, such as sphinx-en-us.

    Exit code 1 says that something has no time, or no phones, and was left out, 2 that a file was not exported at all.
    """
    from align_client.exporting import export_all, phones_from, refuse_existing

    if phones and form not in PHONES:
        raise click.UsageError(f"--phones: {form} files have no place for phones; choose from {', '.join(PHONES)}")
    if not phones and (address or start_server or model):
        raise click.UsageError("--server, --start-server and --model are for --phones; other exports need no server")
    suffix = SUFFIXES[form]
    is_folder = out.is_dir() or not (out.exists() or out.suffix.lower() in map(str.lower, SUFFIXES.values()))
    if not is_folder and out.suffix.lower() != suffix.lower():
        raise click.UsageError(f"{out} is not a folder, nor named {suffix} as --format {form} is; choose another OUT")
    work = _jobs(inputs, out, media_dirs, suffix)
    if not force:
        refuse_existing(work)
    asking = phones_from(address, model, media_dirs, start_server=start_server) if phones else contextlib.nullcontext()
    with asking as add_phones:
        done = export_all(work, form, media_dirs, add_phones)
    if any(exported.error for exported in done):
        sys.exit(WRONG)
    sys.exit(0 if all(exported.is_complete for exported in done) else INCOMPLETE)


@main.command()
@click.argument("audio", type=click.Path(path_type=Path))
@click.option("--text", help="What is said, as words.")
@click.option("--text-file", type=click.Path(path_type=Path), help="A UTF-8 file with what is said.")
@click.option("--language", default="eng", show_default=True, help="ISO 639-3.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_server
def words(
    *,
    audio: Path,
    text: str | None,
    text_file: Path | None,
    language: str,
    form: str,
    address: str | None,
    start_server: bool,
    model: str | None,
) -> None:
    """Print when each word of a short recording is said."""
    from align_client import listing

    if (text is None) == (text_file is None):
        raise click.UsageError("give the words: either --text or --text-file")
    if text_file is not None:
        try:
            text = text_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"cannot read {text_file}: {error}") from error
    result = asyncio.run(_words(audio, text or "", language, address, model, start_server=start_server))
    if form == "json":
        click.echo(json.dumps(listing.word_values(result), ensure_ascii=False, indent=1))
    else:
        listing.print_words(result)
    sys.exit(0 if all(word.reason is None for word in result.words) else INCOMPLETE)


@main.command()
@click.argument("audio", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The .cha file to write; put it beside the recording.",
)
@click.option("--language", metavar="CODE", default="", help="ISO 639-3, such as eng; default: the one that is heard.")
@click.option("--force", is_flag=True, help="Write over OUT where it exists.")
@_server
def transcribe(
    *,
    audio: Path,
    out: Path,
    language: str,
    force: bool,
    address: str | None,
    start_server: bool,
    model: str | None,
) -> None:
    """Write a first CHAT transcript of a recording, with utterances, bullets and %wor, for a person to correct.

    All words are of one speaker, PAR. Needs a server with a model that can find words, such as whisper:FOLDER.
    """
    if out.suffix.lower() != ".cha":
        raise click.UsageError(f"{out} is not named .cha, as CHAT files are")
    if out.exists() and not force:
        raise click.UsageError(f"{out} exists; choose another name, or write over it with --force")
    if language and not re.fullmatch("[a-z]{3}", language):
        raise click.UsageError(f"{language!r} is no ISO 639-3 code; these have three small letters, such as eng")
    recording = asyncio.run(_transcribe(audio, out, language, address, model, start_server=start_server))
    seconds = recording.duration_ms / 1000
    heard = f"{len(recording.words)} words in {recording.language}" if recording.words else "no words"
    click.echo(f"{out}: {heard}, in {seconds:.1f} s of audio, by {recording.model}")
    for gap in recording.gaps:
        where = f"{gap.span.start_ms / 1000:.1f} to {gap.span.end_ms / 1000:.1f} s"
        click.echo(f"{audio}: nothing was transcribed from {where}: {gap.why}", err=True)
    sys.exit(INCOMPLETE if recording.gaps else 0)


async def _transcribe(
    audio: Path, out: Path, language: str, address: str | None, model: str | None, *, start_server: bool
) -> Recording:
    from rich.console import Console
    from rich.progress import Progress

    from align_client.sdk.async_client import AsyncClient
    from align_client.transcription import transcribe

    console = Console(stderr=True)
    with told():
        async with AsyncClient(address, model=model) as client:
            await reach(client, start_server=start_server)
            with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
                task = progress.add_task(audio.name, total=1.0)
                try:
                    return await transcribe(
                        client, audio, out, language, advance=lambda share: progress.update(task, completed=share)
                    )
                except OSError as error:
                    raise click.ClickException(f"cannot write {out}: {error.strerror or error}") from error
    raise AssertionError("told() lets no error of ours pass")


async def _align(
    work: Sequence[Job],
    options: Any,
    progress: Lines,
    records: Records,
    client: AsyncClient,
    *,
    start_server: bool,
) -> list[FileReport]:
    from align_client.corpus import Corpus
    from align_client.sdk.errors import AlignError

    async with client:
        try:
            await reach(client, start_server=start_server)
            await _check_model(client, client.model)
            if options.utr == "whisper":
                await _check_transcriber(client.address)
        except AlignError as error:
            no_server(error)
        return await Corpus(client, options, progress, records).run(work)


async def _words(
    audio: Path, text: str, language: str, address: str | None, model: str | None, *, start_server: bool
) -> AlignResult:
    from align_client.sdk.async_client import AsyncClient

    said = [word for written in text.split() for word in _said(written, language)]
    if not said:
        raise click.UsageError("there is no word in the text")
    with told():
        async with AsyncClient(address, model=model) as client:
            await reach(client, start_server=start_server)
            return await client.align(audio, said, language=language)
    raise AssertionError("told() lets no error of ours pass")


def _said(written: str, language: str) -> list[str]:
    """The words of one piece of running text, without the punctuation around them."""
    from align_client.chat.speech import spoken_words

    words = (re.sub(r"^[^\w']+|[^\w']+$", "", word) for word in spoken_words(written, language))
    return [word for word in words if any(c.isalnum() for c in word)]


async def _check_model(client: Any, model: str | None) -> None:
    if model and model not in (known := [row.name for row in await client.models()]):
        raise click.UsageError(f"the server has no model {model!r}; it can serve {', '.join(known)}")


async def _check_transcriber(address: str) -> None:
    from align_client.recognition import transcriber
    from align_client.sdk.async_client import AsyncClient
    from align_client.sdk.errors import RequestRefused

    try:
        async with AsyncClient(address) as any_model:
            await transcriber(any_model)
    except RequestRefused as error:
        raise click.UsageError(f"--utr whisper: {error}") from error


def _map_large_buffers() -> None:
    """Give the memory of a sent segment back to the system at once: glibc keeps it, scattered, by default."""
    import ctypes

    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)


def _jobs(inputs: Sequence[str], out: Path | None, media_dirs: Sequence[Path], suffix: str | None = None) -> list[Job]:
    """What INPUT and OUT stand for. Raises UsageError."""
    from align_client import files

    try:
        work = files.jobs(inputs, out, suffix)
    except files.InputError as error:
        raise click.UsageError(str(error)) from error
    if not work:
        raise click.UsageError("there is no .cha file in what was given")
    for folder in media_dirs:
        if not folder.is_dir():
            raise click.UsageError(f"--media-dir {folder} is not a folder")
    return work


def _progress(files: int) -> Lines:
    from rich.console import Console

    from align_client.progress import Bars, Lines

    console = Console(stderr=True)
    return Bars(console, files) if console.is_terminal else Lines(console, files)


def _finish(reports: Sequence[FileReport], path: Path | None, seconds: float) -> None:
    """Say what was not aligned, write the report, and exit; `seconds` is what the run took."""
    from align_client.report import complaints
    from align_client.summary import print_summary

    for report in reports:
        for line in complaints(report.source, [*report.left_alone, *report.missing], report.warnings):
            click.echo(line, err=True)
    print_summary(reports, seconds)
    _write_report(reports, path, seconds)
    if any(report.no_server for report in reports):
        sys.exit(NO_SERVER)
    sys.exit(0 if all(report.is_complete for report in reports) else INCOMPLETE)


def _write_report(reports: Sequence[FileReport], path: Path | None, seconds: float) -> None:
    from align_client.report import write_report

    if path is None:
        return
    try:
        write_report(reports, path, seconds)
    except OSError as error:
        raise click.ClickException(f"cannot write the report {path}: {error.strerror}") from error


if __name__ == "__main__":
    main()
