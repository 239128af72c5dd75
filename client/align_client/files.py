"""Which files are meant by the command line's INPUT, where their outputs go, and writing them safely."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MARK: Final = ".align-"  # in the names of half files: those of others are left alone
_HALF: Final = re.compile(rf"\..*{re.escape(_MARK)}[0-9a-f]{{8}}\.tmp", re.DOTALL)


class InputError(Exception):
    """An INPUT cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One transcript and where its result goes."""

    source: Path
    target: Path


def jobs(inputs: Sequence[str], out: Path | None, suffix: str | None = None) -> list[Job]:
    """One job for each .cha file that the inputs name; `out` None means in place.

    A folder is walked and its tree kept below `out`; `@list.txt` names one input a line. Where results are of another
    format, `suffix` is how they are named, and `out` may be the result of one transcript. Raises InputError.
    """
    is_file = out is not None and suffix is not None and out.suffix.lower() == suffix.lower() and not out.is_dir()
    found: dict[Path, Job] = {}
    for source, relative in _sources(inputs, out):
        target = source if out is None else out if is_file else out / _renamed(relative, suffix)
        if out is not None and target.resolve() == source.resolve():
            hint = ", or use --in-place" if suffix is None else ""
            raise InputError(f"{source} would be overwritten by its own output; choose another OUT{hint}")
        earlier = found.get(target)
        if earlier is not None and earlier.source.resolve() != source.resolve():
            cure = "name a folder" if is_file else "take one at a time"
            raise InputError(f"{earlier.source} and {source} would both be written to {target}; {cure}")
        found[target] = Job(source, target)
    return list(found.values())


def _renamed(path: Path, suffix: str | None) -> Path:
    if suffix is None:
        return path
    return path.with_name((path.stem if path.suffix.lower() == ".cha" else path.name) + suffix)


def _sources(inputs: Sequence[str], out: Path | None) -> Iterator[tuple[Path, Path]]:
    for name in inputs:
        if name.startswith("@") and not Path(name).exists():
            yield from _sources(_listed(Path(name[1:])), out)
            continue
        path = Path(name)
        if path.is_dir() and path.suffix.lower() != ".cha":
            yield from ((source, source.relative_to(path)) for source in _walk(path, out))
        elif path.exists() or path.is_symlink():
            yield path, Path(path.name)
        else:
            raise InputError(f"there is no {path}")


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _walk(folder: Path, out: Path | None) -> Iterator[Path]:
    """Every .cha below the folder, sorted, less what lies in OUT."""
    skip = None if out is None else out.resolve()
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (Path(here) / name).resolve() != skip
        )
        yield from (Path(here) / name for name in sorted(names) if name.lower().endswith(".cha"))


def write_atomically(target: Path, data: bytes, mode_of: Path | None = None) -> None:
    """Write a file so that it is never seen half done; with the permissions of `mode_of`. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Through a link, as a plain write would be: the link itself stays.
    target = target.resolve()
    clear(target.parent)
    with _temporary(target) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if mode_of is not None:
            shutil.copymode(mode_of, file.name)
        Path(file.name).replace(target)


@functools.cache
def clear(folder: Path) -> None:
    """Once for each folder: remove the half files whose writers were killed."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _HALF.fullmatch(path.name)]:
            with contextlib.suppress(OSError), path.open("rb") as file:
                if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A file beside the target, locked as long as it is written; gone where it does not take the target's place."""
    while True:
        path = target.with_name(f".{target.name[:200]}{_MARK}{secrets.token_hex(4)}.tmp")
        with path.open("xb") as file:
            _lock(file, fcntl.LOCK_EX)
            if not path.exists():  # one that clears up came in between
                continue
            try:
                yield file
            except BaseException:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
            return


def _lock(file: BinaryIO, how: int) -> bool:
    """Lock an open file as long as it is open. False where somebody else has it, or it cannot be locked."""
    try:
        fcntl.flock(file, how)
    except OSError:
        return False
    return True
