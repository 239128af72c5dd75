"""The files of a checkpoint's folder: its settings, which hold its weights, and whether its SHA256SUMS lists the same.

Knows files, JSON and hashes, in the layout of transformers' `save_pretrained` and of `sha256sum`; knows no model, and
imports neither torch nor transformers, so that listing is quick.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.engine import EngineLoadError, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from align_server.engines.engine import Progress

SUMS: Final = "SHA256SUMS"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"  # names the parts of weights that are split over several files

READ_AT_ONCE: Final = 4 << 20  # bytes
_SUM_LINE: Final = re.compile(r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


def read_json(path: Path, without: str = "") -> dict[str, Any]:
    """The object in a JSON file; without the file an empty one, or EngineLoadError where `without` says what it means.

    Raises EngineLoadError for what is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not without:
            return {}
        raise EngineLoadError(f"{path.parent} has no {path.name}: {without}") from error
    except (OSError, ValueError) as error:
        raise EngineLoadError(f"{path} cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise EngineLoadError(f"{path} holds {type(value).__name__} where an object was expected; copy it again")
    return value


def read_config(folder: Path, how: str) -> dict[str, Any]:
    """The config.json of a checkpoint; `how` is how users name such a folder. Raises EngineLoadError."""
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise EngineLoadError(f"{folder} {found}; name a folder that holds a checkpoint, as {how}")
    return read_json(folder / "config.json", "it is not a checkpoint that transformers wrote")


def weight_files(folder: Path, pickled: str) -> tuple[Path, ...]:
    """The files of the weights. Raises EngineLoadError where they are not there, or not as safetensors.

    `pickled` says, after "so", what becomes of pickled weights.
    """
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
            f"they are read, so {pickled}"
        )
    raise EngineLoadError(f"{folder} has no {WEIGHTS}; copy or download the checkpoint's weights")


def verify(folder: Path, own: Sequence[Path], progress: Progress) -> str:
    """Read `own` and what SHA256SUMS lists, check the latter, and return a line of name and hash for each of `own`.

    Raises EngineLoadError for a file that is not what the list says, or cannot be read.
    """
    expected = _listed(folder / SUMS)
    paths = list(dict.fromkeys((*own, *expected)))
    found: dict[Path, str] = {}
    try:
        total = sum(path.stat().st_size for path in paths)
        done = 0
        for path in paths:
            digest = hashlib.sha256()
            for chunk in chunks(path):
                digest.update(chunk)
                done += len(chunk)
                progress(done / total, f"checking {path.name}")
            found[path] = digest.hexdigest()
            if path in expected and found[path] != expected[path]:
                raise EngineLoadError(
                    f"{path} is not the file that {SUMS} lists: its SHA-256 is {found[path]}, "
                    f"not {expected[path]}; copy or download it again"
                )
    except OSError as error:
        raise EngineLoadError(
            f"{error.filename} cannot be read ({error.strerror}); copy the checkpoint again"
        ) from error
    return "".join(f"{path.name} {found[path]}\n" for path in own)


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a few MB at a time. Raises OSError."""
    with path.open("rb") as file:
        while chunk := file.read(READ_AT_ONCE):
            yield chunk


def sha256(path: Path, progress: Progress = silent) -> str:
    """The SHA-256 of a file, in hex digits. Raises OSError."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    for chunk in chunks(path):
        digest.update(chunk)
        done += len(chunk)
        progress(done / total, f"checking {path.name}")
    return digest.hexdigest()


def _listed(path: Path) -> dict[Path, str]:
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
