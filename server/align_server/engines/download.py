"""One published file, brought to where it is kept: whole and checked, or not at all.

Knows HTTP and locks, and no model.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import IO, TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from align_server.engines import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from align_server.engines.engine import Progress

TIMEOUT_S: Final = 30.0  # without a byte
PARTIAL: Final = 206  # status codes: a part as it was asked for, and no such part
BEYOND: Final = 416


def bring(url: str, path: Path, sha256: str, progress: Progress) -> None:
    """Download a file unless it is there meanwhile, and give it its name when it is whole.

    Where its hash is known, what broke off is kept beside it, and the next download goes on there. Others that want the
    same file, in whatever process, wait. Raises OSError and http.client.HTTPException for what breaks off, and
    ValueError for another file than the hash says, which is not kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{sha256[:12]}.partial")
    with _claimed(part) as file:
        kept = False
        try:
            if path.exists():
                return  # somebody else brought it
            kept = bool(sha256)
            for _ in range(2 if file.tell() else 1):  # what broke off earlier may have been wrong already
                _append(url, file, path.name, progress)
                found = files.sha256(part, lambda _, what: progress(1.0, what)) if sha256 else ""
                if found == sha256:
                    part.replace(path)
                    return
                file.truncate(0)
            kept = False
            raise ValueError(f"what {url} sent has the SHA-256 {found} instead of {sha256}, and was not kept")
        finally:
            if not (kept and file.seek(0, os.SEEK_END)):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[IO[bytes]]:
    """The file, to append to, when nobody else has it."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):  # whoever had it before may have renamed or removed it
                if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    yield file
                    return


def _append(url: str, file: IO[bytes], name: str, progress: Progress) -> None:
    """What a file still lacks; all of it where the server gives no parts."""
    have = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "chatalign", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)  # noqa: S310  a constant, not from a user
    except HTTPError as error:
        if error.code == BEYOND and have:
            return  # it was whole
        raise
    with response:
        if response.status != PARTIAL:
            have = file.truncate(0)
        done, total = have, have + int(response.headers["Content-Length"] or 0)
        while chunk := response.read(files.READ_AT_ONCE):
            file.write(chunk)
            done += len(chunk)
            if total > have:
                progress(done / total, f"downloading {name}, {total / 1e6:.0f} MB")
    file.flush()
    if done < total:
        raise ConnectionError(f"it ended after {done} of {total} bytes")
