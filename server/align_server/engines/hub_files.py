"""One file of a commit on the Hugging Face hub: into the hub's own cache, whole and checked, or not at all.

Knows HTTP, the layout of the cache and hashes; knows no model. Where files are, who may read them and how the cache
is laid out is huggingface_hub's affair. What is large is streamed here: its 2.4 begins anew after a break that lasts,
and does not look at what it got. huggingface_hub is imported when it is used, so that listing is quick.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from align_server.engines.engine import EngineLoadError
from align_server.engines.files import chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[int, str], None]  # bytes that are done, and what is being done

TRIES: Final = 5  # in a row without a byte, before a download is given up
PAUSE_S: Final = 1.0  # between two of them
REPORT: Final = 1 << 20  # bytes from one report to the next
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})  # status codes that may be others in a moment
PARTIAL: Final = 206
SHA256_DIGITS: Final = 64


def storage(repository: str) -> Path:
    """Where the cache keeps a model, whether it is there or not: in HF_HUB_CACHE, or below HF_HOME."""
    from huggingface_hub import constants  # noqa: PLC0415  see above

    separator = constants.REPO_ID_SEPARATOR
    return Path(constants.HF_HUB_CACHE) / f"models{separator}{repository.replace('/', separator)}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of one commit. `size` is in bytes.

    `digest` names what is in it, and the file in the cache: the SHA-256 of a large one, for others the SHA-1 that git
    has for it; "" where the hub does not say.
    """

    repository: str
    commit: str
    name: str
    size: int
    digest: str

    @property
    def path(self) -> Path:
        """Where it is in the cache, once it is: a link, as a rule."""
        return storage(self.repository) / "snapshots" / self.commit / self.name

    @property
    def left(self) -> int:
        """Bytes that are still to be downloaded, if what is there is right."""
        part = self._blob.with_name(f"{self.digest}.incomplete")
        return 0 if self.path.exists() else self.size - (part.stat().st_size if part.exists() else 0)

    @property
    def _blob(self) -> Path:
        return storage(self.repository) / "blobs" / self.digest

    def bring(self, report: Report) -> None:
        """Download it unless it is there, and check it; goes on where an earlier download broke off.

        Raises EngineLoadError for what is not what the hub lists, and what huggingface_hub raises.
        """
        from huggingface_hub import hf_hub_download  # noqa: PLC0415  see above
        from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415  the same

        if self.path.exists():
            if self._is_whole(self.path, report):
                return
            self.path.resolve().unlink(missing_ok=True)
        if len(self.digest) == SHA256_DIGITS:
            self._stream(report)
        disable_progress_bars()
        # Finds what was streamed in its place, and links it.
        path = Path(hf_hub_download(self.repository, self.name, revision=self.commit))
        if len(self.digest) != SHA256_DIGITS and not self._is_whole(path, report):
            path.resolve().unlink(missing_ok=True)
            raise self._spoilt()

    def _stream(self, report: Report) -> None:
        """Bring it to where the cache keeps it. Whoever else wants it, in whatever process, waits for the lock."""
        from huggingface_hub.utils import WeakFileLock  # noqa: PLC0415  see above

        blob, home = self._blob, storage(self.repository)
        part = blob.with_name(f"{self.digest}.incomplete")
        lock = home.parent / ".locks" / home.name / f"{self.digest}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        report(0, f"waiting for {self.name}")
        with WeakFileLock(lock):
            if blob.exists():
                if self._is_whole(blob, report):
                    return
                blob.unlink()
            for _ in range(2):  # what broke off earlier may have been wrong already
                self._download(part, report)
                if self._is_whole(part, report):
                    part.replace(blob)
                    return
                part.unlink()
        raise self._spoilt()

    def _download(self, part: Path, report: Report) -> None:
        """Append to `part` until it has its size, trying again when the connection breaks."""
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415  see above

        tries = TRIES
        while (have := part.stat().st_size if part.exists() else 0) < self.size:
            why: Exception = ConnectionError(f"it ended after {have} of {self.size} bytes")
            try:
                self._append(part, have, report)
            except HfHubHTTPError as error:
                if error.response.status_code not in BUSY:
                    raise
                why = error
            except transport_error() as error:
                why = error
            if part.exists() and part.stat().st_size > have:
                tries = TRIES
                continue
            tries -= 1
            if not tries:
                raise why
            time.sleep(PAUSE_S)

    def _append(self, part: Path, have: int, report: Report) -> None:
        from huggingface_hub import constants, hf_hub_url  # noqa: PLC0415  see above
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # noqa: PLC0415  the same

        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        url = hf_hub_url(self.repository, self.name, revision=self.commit)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # without a byte
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            resumed = response.status_code == PARTIAL
            done = told = have if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    done += len(chunk)
                    if done - told >= REPORT or done >= self.size:
                        told = done
                        report(done, f"downloading {self.name} ({done / 1e6:.0f} of {self.size / 1e6:.0f} MB)")
                    if done > self.size:
                        return  # it is another file

    def _is_whole(self, path: Path, report: Report) -> bool:
        """Whether a file is what the hub lists."""
        if path.stat().st_size != self.size:
            return False
        if not self.digest:
            return True
        if len(self.digest) == SHA256_DIGITS:
            digest = hashlib.sha256()
        else:  # git's, of what it calls a blob
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        for chunk in chunks(path):
            report(self.size, f"checking {self.name}")
            digest.update(chunk)
        return digest.hexdigest() == self.digest

    def _spoilt(self) -> EngineLoadError:
        from huggingface_hub import constants  # noqa: PLC0415  see above

        return EngineLoadError(
            f"what {constants.ENDPOINT} sent for {self.name} of {self.repository} is not the file that it lists "
            f"({self.digest}, {self.size} bytes), and was removed; try again later, and without a proxy between"
        )


def transport_error() -> type[Exception]:
    """What huggingface_hub lets through when the hub is not reached, or breaks off."""
    from huggingface_hub import errors  # noqa: PLC0415  see above

    error: type[Exception] = errors.HTTPError  # httpx's in 1.x, httpx2's in 2.x
    return error
