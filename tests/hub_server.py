"""A Hugging Face hub of our own on 127.0.0.1, which serves real checkpoints and breaks in the ways that hubs do.

It speaks what huggingface_hub asks for a download: `/api/models/ID/revision/REVISION` and `/ID/resolve/COMMIT/FILE`,
which for large files leads to another host, as the hub's does: that one knows ranges, and refuses who shows it a token.
Tests alone use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from align_server.engines import hub

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    Files = Mapping[str, bytes | None]

LARGE: Final = (".safetensors", ".bin")  # kept apart from git, under their SHA-256
ELSEWHERE: Final = "cdn/"  # what is asked of the other host, as which we answer to another name
ID: Final = "lab/german"  # the model that it has in tests of a process
TOKEN: Final = "hf_of_the_tests"  # noqa: S105  opens nothing


@dataclass
class Faults:
    """What the hub does wrong, by the name of the file or of the model. Sizes are in bytes."""

    cut_after: dict[str, list[int]] = field(default_factory=dict)  # of one answer that is longer, then of the next
    spoilt: set[str] = field(default_factory=set)  # files with a wrong byte
    rate: float = 0.0  # bytes a second; 0 means all that there is
    ignores_ranges: bool = False
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    status: int = 0  # of every answer


@dataclass(frozen=True)
class Asked:
    """A request, and the first byte that was asked for."""

    method: str
    path: str
    begin: int = 0


class HubServer:
    """Serves until the end of the with statement. `asked` are the requests so far, `faults` may change at any time."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}  # files, by the model and its commit
        self.names: dict[tuple[str, str], str] = {}  # commits, by the model and its branch or tag
        self.commit = ""  # for a test to remember one by
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Be no longer reachable."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(self, repository: str, folder: Path, revision: str = "main", more: Files | None = None) -> str:
        """Publish the files of a folder, and `more`, of which None takes one out; return the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        for name, data in (more or {}).items():
            files.pop(name, None)
            if data is not None:
                files[name] = data
        commit = hashlib.sha1(repr([(n, identity(n, d)) for n, d in files.items()]).encode()).hexdigest()  # noqa: S324  as git
        self.commits[repository, commit] = files
        self.names[repository, revision] = commit
        return commit

    def loaded(self, name: str) -> list[int]:
        """The first byte that was asked for, of each download of a file of that name."""
        begin = f"/{ELSEWHERE}" if name.endswith(LARGE) else "/"
        asked = [one for one in self.asked if one.method == "GET" and one.path.startswith(begin)]
        return [one.begin for one in asked if one.path.endswith(f"/{name}")]

    def environment(self, cache: Path) -> dict[str, str]:
        """What a process needs to be told to use this hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache.with_name("home")),
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_OFFLINE": "",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1,localhost",
        }


def identity(name: str, data: bytes) -> str:
    """What the hub calls a file: the SHA-256 of a large one, else what git does."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  as git


class _Refused(Exception):  # noqa: N818  no error of ours
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        """Remember the connection."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are written one after the other
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        try:
            self._answer()
        except _Refused as refused:
            self.send_response(refused.status)
            self.send_header("X-Error-Code", refused.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if "/revision/" not in path and "/resolve/" not in path:
            raise _Refused(404)  # huggingface_hub also asks which programs it may name itself after
        hub.asked.append(Asked(self.command, f"/{path}", begin))
        if hub.faults.status:
            raise _Refused(hub.faults.status)
        is_listing = path.startswith("api/models/")
        is_elsewhere = path.startswith(ELSEWHERE)
        if is_elsewhere and "Authorization" in self.headers:
            raise _Refused(400)
        path = path.removeprefix("api/models/").removeprefix(ELSEWHERE)
        repository, rest = path.split("/revision/" if is_listing else "/resolve/")
        revision, name = (rest, "") if is_listing else rest.split("/", 1)
        commit, files = self._found(repository, revision, trusted=is_elsewhere)
        if is_listing:
            self._list(repository, commit, files)
        elif name not in files:
            raise _Refused(404, "EntryNotFound")
        elif name.endswith(LARGE) and not is_elsewhere:
            self._refer(f"{repository}/resolve/{commit}/{name}", identity(name, files[name]), len(files[name]), commit)
        else:
            self._send(name, files[name], commit, begin)

    def _refer(self, path: str, etag: str, size: int, commit: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/{ELSEWHERE}{path}")
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(size))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _found(self, repository: str, revision: str, *, trusted: bool) -> tuple[str, dict[str, bytes]]:
        hub = self.server.hub
        trusted |= self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository in hub.faults.gated and not trusted:
            raise _Refused(403, "GatedRepo")
        if repository not in {one for one, _ in hub.commits} or (repository in hub.faults.private and not trusted):
            raise _Refused(401, "RepoNotFound")
        commit = hub.names.get((repository, revision), revision)
        if (repository, commit) not in hub.commits:
            raise _Refused(404, "RevisionNotFound")
        return commit, hub.commits[repository, commit]

    def _list(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        siblings = []
        for name, data in files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if name.endswith(LARGE):
                one["lfs"] = {"sha256": identity(name, data), "size": len(data), "pointerSize": 134}
            else:
                one["blobId"] = identity(name, data)
            siblings.append(one)
        answer = json.dumps({"id": repository, "sha": commit, "siblings": siblings, "tags": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _send(self, name: str, data: bytes, commit: str, begin: int) -> None:
        faults = self.server.hub.faults
        etag = identity(name, data)
        if name in faults.spoilt:
            data = bytes([data[0] ^ 1]) + data[1:]
        if faults.ignores_ranges:
            begin = 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = faults.cut_after.get(name)
        end = begin + cuts.pop(0) if cuts and begin + cuts[0] < len(data) else len(data)
        step = 1 << 18
        for at in range(begin, min(end, len(data)), step):
            if faults.rate and name.endswith(LARGE):
                time.sleep(step / faults.rate)
            self.wfile.write(data[at : min(at + step, end)])
        if end < len(data):
            self.close_connection = True


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process knows beyond the hub's cache is forgotten, as by a process that was just started."""
    monkeypatch.setattr(hub, "_settled", {})
