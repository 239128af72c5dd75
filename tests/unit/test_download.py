"""A file is downloaded once, whole and checked, and goes on where it broke off."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_server.engines import files
from align_server.engines.download import bring
from align_server.engines.engine import silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Site:
    """Sends `content`, up to `most` bytes of an answer, and keeps what was asked for."""

    def __init__(self, *, ranges: bool = True) -> None:
        self.content = CONTENT
        self.most = len(CONTENT)
        self.ranges = ranges
        self.asked: list[str] = []  # the range of each request
        self.url = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                site.asked.append(wanted)
                begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
                if begin >= len(site.content):
                    self.send_error(416)
                    return
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(site.content) - begin))
                self.end_headers()
                self.wfile.write(site.content[begin : begin + site.most])

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}/model.pt"
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    with made.open():
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "model.pt"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def part(path: Path, content: bytes) -> Path:
    """What an earlier download left."""
    path.parent.mkdir(parents=True)
    made = path.with_name(f"model.pt.{SHA256[:12]}.partial")
    made.write_bytes(content)
    return made


def test_a_file_comes_whole_and_alone(site: Site, path: Path) -> None:
    shares: list[float] = []
    bring(site.url, path, SHA256, lambda share, _: shares.append(share))
    assert path.read_bytes() == CONTENT
    assert names(path) == ["model.pt"]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_what_broke_off_is_gone_on_with(site: Site, path: Path) -> None:
    site.most = HALF
    with pytest.raises(ConnectionError, match=f"it ended after {HALF} of {len(CONTENT)} bytes"):
        bring(site.url, path, SHA256, silent)
    assert not path.exists()
    site.most = len(CONTENT)
    bring(site.url, path, SHA256, silent)
    assert site.asked == ["", f"bytes={HALF}-"]
    assert path.read_bytes() == CONTENT
    assert names(path) == ["model.pt"]


def test_a_server_without_parts_sends_all_of_it_again(path: Path) -> None:
    site = Site(ranges=False)
    part(path, CONTENT[:HALF])
    with site.open():
        bring(site.url, path, SHA256, silent)
    assert path.read_bytes() == CONTENT


def test_a_whole_part_is_only_checked(site: Site, path: Path) -> None:
    part(path, CONTENT)
    bring(site.url, path, SHA256, silent)
    assert site.asked == [f"bytes={len(CONTENT)}-"]
    assert path.read_bytes() == CONTENT


def test_a_part_that_was_wrong_is_begun_anew(site: Site, path: Path) -> None:
    part(path, b"x" * HALF)
    bring(site.url, path, SHA256, silent)
    assert site.asked == [f"bytes={HALF}-", ""]
    assert path.read_bytes() == CONTENT


def test_another_file_is_not_kept(site: Site, path: Path) -> None:
    site.content = CONTENT[::-1]
    with pytest.raises(ValueError, match=f"instead of {SHA256}, and was not kept"):
        bring(site.url, path, SHA256, silent)
    assert names(path) == []


def test_without_a_hash_nothing_is_left_of_what_broke_off(site: Site, path: Path) -> None:
    site.most = HALF
    with pytest.raises(ConnectionError):
        bring(site.url, path, "", silent)
    assert names(path) == []


def test_several_at_once_download_it_once(site: Site, path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bring(site.url, path, SHA256, silent), range(4)))
    assert site.asked == [""]
    assert path.read_bytes() == CONTENT
    assert names(path) == ["model.pt"]


def test_an_unreachable_server_leaves_nothing(free_port: int, path: Path) -> None:
    with pytest.raises(OSError, match="refused"):
        bring(f"http://127.0.0.1:{free_port}/model.pt", path, SHA256, silent)
    assert names(path) == []


def test_a_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    assert files.sha256(path) == SHA256
