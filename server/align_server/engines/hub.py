"""Models of the Hugging Face hub, by id: OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit.

Where a model has adapters, OWNER/NAME#LANGUAGE,LANGUAGE or OWNER/NAME@REVISION#LANGUAGE,LANGUAGE names those wanted.

Knows ids, revisions, which files of a checkpoint are needed and what may go wrong; one file is `hub_files`' affair.
They are kept in the hub's own cache, which other programs share, and its settings hold: HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. huggingface_hub is imported when it is used, so that listing is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from align_server.engines.ctc.adapters import adapter_files
from align_server.engines.engine import EngineLoadError, Progress, silent
from align_server.engines.files import INDEX, WEIGHTS, read_json, weight_files
from align_server.engines.hub_files import RemoteFile, storage, transport_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from huggingface_hub import ModelInfo

MAIN: Final = "main"
CARD: Final = "README.md"  # names the licence
TOKENIZERS: Final = ("vocab.json", "tokenizer.json")  # a checkpoint has one of them at least
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
RECORDS: Final = "chatalign"  # the folder, beside those of the hub's cache, that says which commits are whole
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
ADAPTER: Final = re.compile(r"adapter\.[\w-]+\.safetensors")
DIGEST: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# As huggingface_hub has it for ids, and git for names of branches.
_ID: Final = re.compile(
    r"(?P<id>\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?)(?:@(?P<revision>\w[\w./+-]*))?"
    r"(?:#(?P<languages>[\w-]+(?:,[\w-]+)*))?",
    re.ASCII,
)

log = structlog.get_logger()


class _Unreached(EngineLoadError):  # noqa: N818  one kind of it
    """The hub was of no help, for the reason `why`."""

    def __init__(self, why: str, cure: str) -> None:
        super().__init__(f"{why}, and {cure}")
        self.why = why


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on the hub. `repository` is OWNER/NAME; `revision` a branch, a tag or a commit.

    `languages` are those whose adapters are wanted, as `adapter_files` takes them; none where a model has none.
    """

    repository: str
    revision: str = MAIN
    languages: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """The model that `text` is the id of; None where it can only be, or is, the name of a folder or file."""
        found = _ID.fullmatch(text)
        if not found or "--" in found["id"] or ".." in text or found["id"].endswith(".git") or Path(text).exists():
            return None
        languages = found["languages"].split(",") if found["languages"] else ()
        return cls(found["id"], found["revision"] or MAIN, tuple(dict.fromkeys(languages)))

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        languages = f"#{','.join(self.languages)}" if self.languages else ""
        return f"{self.repository}{revision}{languages}"

    @property
    def branch(self) -> tuple[str, str]:
        """What is settled on a commit, whichever the languages."""
        return self.repository, self.revision


_settled: dict[
    tuple[str, str], str
] = {}  # the commit that this process has for a branch, though the branch may move on


def snapshot(reference: Reference) -> Path | None:
    """The folder of that revision in the cache, named by its commit; None unless it is whole. Only reads the disk."""
    commit = _settled.get(reference.branch) or _known_commit(reference)
    if not commit:
        return None
    folder = storage(reference.repository) / "snapshots" / commit
    is_whole = (
        _is_recorded(reference, commit) if _record_path(reference, commit).exists() else _looks_whole(folder, reference)
    )
    return folder if is_whole else None


def fetch(reference: Reference, settings: Sequence[str], progress: Progress = silent) -> Path:
    """The folder of that revision in the cache, named by its commit; what is missing there is downloaded.

    `settings` are the small files to bring if there are such, besides config.json and the weights. Nothing is asked of
    the hub for a commit, or by a process for a branch, that was brought before. Where the hub does not help, what the
    cache has of that revision will do, if it is whole. Raises EngineLoadError.
    """
    commit = _settled.get(reference.branch) or (reference.revision if COMMIT.fullmatch(reference.revision) else "")
    if not (commit and _is_recorded(reference, commit)):
        try:
            commit = _brought(reference, commit or reference.revision, settings, progress)
        except EngineLoadError as error:
            folder = snapshot(reference)
            if folder is None:
                raise
            commit = folder.name
            why = error.why if isinstance(error, _Unreached) else str(error)
            log.warning("model from the cache", model=str(reference), commit=commit, why=why)
    _settled[reference.branch] = commit
    return storage(reference.repository) / "snapshots" / commit


def _brought(reference: Reference, revision: str, settings: Sequence[str], progress: Progress) -> str:
    """Download what is missing, and return the commit that the revision is now. Raises EngineLoadError."""
    try:
        progress(0.0, "asking the hub")
        files = _Listing.of(reference, revision)
        small = [name for name in ("config.json", *settings, CARD) if name in files.files]
        files.bring(small, lambda _share, what: progress(0.0, what))
        adapters = files.adapters()
        files.bring([*files.weights(), *adapters], progress)
        _record(reference, files)
    except EngineLoadError:
        raise
    except (transport_error(), OSError, ValueError) as error:
        raise _explained(reference, error) from error
    return files.commit


@dataclass(slots=True)
class _Listing:
    """What the hub has of a model at one commit. `wanted` are the files that were brought."""

    reference: Reference
    commit: str
    files: dict[str, RemoteFile]
    wanted: dict[str, RemoteFile]

    @classmethod
    def of(cls, reference: Reference, revision: str) -> _Listing:
        """Ask the hub. Raises EngineLoadError where it is no checkpoint that can be read, and what the hub raises."""
        from huggingface_hub import HfApi, constants  # noqa: PLC0415  see above

        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(reference.repository, revision=revision, files_metadata=True, timeout=timeout)
        commit = info.sha or ""
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"it names the commit {commit!r}")
        files = {file.name: file for file in _files(reference.repository, commit, info)}
        if "config.json" not in files:
            raise EngineLoadError(f"{reference} has no config.json: it is not a checkpoint that transformers wrote")
        if not {WEIGHTS, INDEX} & files.keys():
            raise EngineLoadError(_without_weights(reference, files))
        return cls(reference, commit, files, {})

    def weights(self) -> list[str]:
        """The files of the weights; where they are in parts, brings the index that names these. Raises as `bring`."""
        if WEIGHTS in self.files:
            return [WEIGHTS]
        self.bring([INDEX], silent)
        parts = sorted(set((read_json(self.files[INDEX].path).get("weight_map") or {}).values()))
        if missing := [name for name in parts if name not in self.files or "/" in name]:
            raise EngineLoadError(f"{self.reference} has no {', '.join(missing)}, which its {INDEX} names")
        if not parts:
            raise EngineLoadError(f"{self.reference} has an {INDEX} that names no weights")
        return parts

    def adapters(self) -> list[str]:
        """The files of the adapters that are wanted; the small files are there. Raises EngineLoadError."""
        names = adapter_files(self.files["config.json"].path.parent, self.reference.languages, str(self.reference))
        if missing := [name for name in names if name not in self.files]:
            there = sorted(name for name in self.files if ADAPTER.fullmatch(name))
            some = f"it has {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}" if there else "it has none"
            raise EngineLoadError(f"{self.reference} has no {', '.join(missing)}; {some}")
        return list(dict.fromkeys(names))

    def bring(self, names: Sequence[str], progress: Progress) -> None:
        """Have these files in the cache. Progress is the share of these bytes. Raises EngineLoadError and the hub's."""
        files = {name: self.files[name] for name in names}
        self._check_room(sum(file.left for file in files.values()))
        total = sum(file.size for file in files.values()) or 1
        before = 0

        def report(done: int, what: str) -> None:
            progress(min(1.0, (before + done) / total), what)

        for name, file in files.items():
            file.bring(report)
            before += file.size
            self.wanted[name] = file

    def _check_room(self, needed: int) -> None:
        """Raises EngineLoadError where the disk has no room for so many bytes."""
        home = storage(self.reference.repository).parent
        home.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(home).free) < needed:
            raise EngineLoadError(
                f"{self.reference} takes {needed / 1e6:.0f} MB more, and {home} has {free / 1e6:.0f} MB left; make "
                "room, or name another place in HF_HUB_CACHE"
            )


def _files(repository: str, commit: str, info: ModelInfo) -> list[RemoteFile]:
    found = []
    for one in info.siblings or ():
        digest, size = (one.lfs.sha256, one.lfs.size) if one.lfs else (one.blob_id or "", one.size or 0)
        known = digest if DIGEST.fullmatch(digest) else ""  # it becomes the name of a file
        found.append(RemoteFile(repository, commit, one.rfilename, size, known))
    return found


def _known_commit(reference: Reference) -> str:
    """The commit that a revision was when the cache last heard of it, or ""."""
    if COMMIT.fullmatch(reference.revision):
        return reference.revision
    try:
        commit = (storage(reference.repository) / "refs" / reference.revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return commit if COMMIT.fullmatch(commit) else ""


def _record_path(reference: Reference, commit: str) -> Path:
    return storage(reference.repository) / RECORDS / f"{commit}.json"


def _is_recorded(reference: Reference, commit: str) -> bool:
    """Whether everything that is needed of a commit was brought and checked, and is still there in its size."""
    folder = storage(reference.repository) / "snapshots" / commit
    try:
        sizes = read_json(_record_path(reference, commit))
        is_there = bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
        return is_there and sizes.keys() >= {*adapter_files(folder, reference.languages, str(reference))}
    except (EngineLoadError, OSError):
        return False


def _looks_whole(folder: Path, reference: Reference) -> bool:
    """Whether another program has put into the cache what a checkpoint cannot do without."""
    try:
        weight_files(folder, "")
        if not all((folder / name).is_file() for name in adapter_files(folder, reference.languages, str(reference))):
            return False
    except EngineLoadError:
        return False
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in TOKENIZERS)


def _record(reference: Reference, listing: _Listing) -> None:
    """Write down that a commit is whole, and what the revision now is. A cache that cannot be written is no harm.

    What was brought before, such as the adapters of other languages, stays in the record as long as it is there.
    """
    folder = storage(reference.repository) / "snapshots" / listing.commit
    sizes = {name: file.size for name, file in listing.wanted.items()}
    with contextlib.suppress(OSError, EngineLoadError):
        for name, size in read_json(_record_path(reference, listing.commit)).items():
            if (folder / name).is_file() and (folder / name).stat().st_size == size:
                sizes.setdefault(name, size)
    with contextlib.suppress(OSError):
        _write(_record_path(reference, listing.commit), json.dumps(sizes, indent=1))
        if reference.revision != listing.commit:
            _write(storage(reference.repository) / "refs" / reference.revision, listing.commit)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _without_weights(reference: Reference, names: Iterable[str]) -> str:
    pickled = ", ".join(sorted(name for name in names if name.endswith(PICKLED) and "/" not in name))
    if not pickled:
        return f"{reference} has no {WEIGHTS}: there are no weights that could be read"
    return (
        f"{reference} has its weights in {pickled} and not as {WEIGHTS}; pickled weights can run code when they are "
        "read, so they are not. Its page may have a conversion among its pull requests: name it as "
        f"{reference.repository}@refs/pr/NUMBER. Or convert them with transformers into a folder"
    )


def _explained(reference: Reference, error: Exception) -> EngineLoadError:
    """What to tell a user for what huggingface_hub raised."""
    from huggingface_hub import constants, errors  # noqa: PLC0415  see above

    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{reference.repository}"
    home = storage(reference.repository)
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what kept it from looking further than the cache
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.GatedRepoError):
        return EngineLoadError(
            f"{reference.repository} is only for those who were let in: ask for it at {page}, and set HF_TOKEN to a "
            "token of yours"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return EngineLoadError(
            f"there is no model {reference.repository} at {hub}, or it is private, and no folder of that name is here; "
            "correct the name, or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return EngineLoadError(
            f"{reference.repository} has no branch, tag or commit {reference.revision!r}; {page}/tree/main lists them"
        )
    if status in {401, 403}:
        return EngineLoadError(
            f"{hub} does not let {reference.repository} be read (status {status}); set HF_TOKEN to a token that may"
        )
    if isinstance(error, OSError) and error.errno:  # of a file: what the network raises has no number
        return EngineLoadError(
            f"{reference} cannot be kept in {error.filename or home} ({error.strerror}); mend that, or name another "
            "place in HF_HUB_CACHE"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = f"{hub} is not asked, as HF_HUB_OFFLINE is set"
    elif status:
        why = f"{hub} answered with status {status}"
    else:
        why = f"{hub} could not be reached, or broke off ({str(error) or type(error).__name__})"
    return _Unreached(
        why,
        f"{reference} is not whole in {home.parent}: copy {home.name} there from a machine that has it, or set "
        "HF_HUB_CACHE to a cache with it, or put its files into a folder and name that",
    )
