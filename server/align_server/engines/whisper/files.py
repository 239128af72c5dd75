"""The files of a checkpoint's folder: which hold its weights, and whether they are those that its SHA256SUMS lists.

Knows files and hashes; knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from align_server.engines.ctc.checkpoint import read_json
from align_server.engines.engine import EngineLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SUMS: Final = "SHA256SUMS"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"  # names the parts of weights that are split over several files

_READ_AT_ONCE: Final = 4 << 20  # bytes
_SUM_LINE: Final = re.compile(r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of the weights. Raises EngineLoadError where they are not there, or not as safetensors."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if index := read_json(folder / INDEX).get("weight_map"):
        parts = tuple(folder / name for name in sorted(set(index.values())))
        if missing := [path.name for path in parts if not path.is_file()]:
            raise EngineLoadError(f"{folder} has no {', '.join(missing)}, which {INDEX} names; copy or download it")
        return parts
    if pickles := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
        raise EngineLoadError(
            f"{folder} has its weights in {', '.join(pickles)} and not as {WEIGHTS}; pickled weights can run code when "
            "they are read, so only OpenAI's own files are, as whisper:FILE.pt; convert others with transformers"
        )
    raise EngineLoadError(f"{folder} has no {WEIGHTS}; copy or download the checkpoint's weights")


def verify(folder: Path, own: Sequence[Path], progress: Callable[[float, str], None]) -> str:
    """Read `own` and what SHA256SUMS lists, check the latter, and return a hash of `own`, in hex digits.

    Raises EngineLoadError for a file that is not what the list says, or cannot be read.
    """
    expected = listed(folder / SUMS)
    paths = list(dict.fromkeys((*own, *expected)))
    found: dict[Path, str] = {}
    try:
        total = sum(path.stat().st_size for path in paths)
        done = 0
        for path in paths:
            found[path] = sha256(path)
            done += path.stat().st_size
            progress(done / max(1, total), f"checking {path.name}")
            if found[path] != expected.get(path, found[path]):
                raise EngineLoadError(
                    f"{path} is not the file that {SUMS} lists: its SHA-256 is {found[path]}, "
                    f"not {expected[path]}; copy or download it again"
                )
    except OSError as error:
        raise EngineLoadError(
            f"{error.filename} cannot be read ({error.strerror}); copy the checkpoint again"
        ) from error
    return hashlib.sha256("".join(f"{path.name} {found[path]}\n" for path in own).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()


def listed(path: Path) -> dict[Path, str]:
    """The SHA-256 of each file that a SHA256SUMS lists, in small hex digits; none if there is no such list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineLoadError(f"{path} cannot be read ({error}); write it with sha256sum, or delete it") from error
    found: dict[Path, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise EngineLoadError(f"{path}, line {number}, is not '<sha256>  <file>'; write it with sha256sum")
        found[path.parent / match["name"]] = match["sum"].lower()
    return found
