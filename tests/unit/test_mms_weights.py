"""Where the weights of mms-fa come from, and what is said of those that are missing or wrong."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from align_server.engines.ctc.bundle import MMS_FA
from align_server.engines.ctc.mms import MmsEngine
from align_server.engines.engine import EngineLoadError
from bundles import BUNDLE, loaded, state, write
from emissions import computed, several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("home")


@contextlib.contextmanager
def serving(content: bytes, *, promised: int) -> Iterator[str]:
    """The address of a file on a server that promises so many bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/tiny.pt" else 404)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/tiny.pt"
        server.shutdown()
        thread.join()


def test_weights_that_are_not_there_are_downloaded_once(home: Path, empty: Path, exact: MmsEngine) -> None:
    content = (home / "hub" / "checkpoints" / "tiny.pt").read_bytes()
    seen: list[tuple[float, str]] = []
    with serving(content, promised=len(content)) as url:
        engine = MmsEngine("cpu", "fp32", replace(BUNDLE, url=url))
        assert engine.size_bytes == 0
        engine.load(lambda share, what: seen.append((share, what)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert (min(shares) > 0, shares[-1]) == (True, 1)
    assert [what.split(",")[0] for _, what in seen] == [
        "downloading tiny.pt",
        "checking tiny.pt",
        "reading the weights",
        "reading the tables of uroman",
        "loaded",
    ]
    assert [path.name for path in (empty / "hub" / "checkpoints").iterdir()] == ["tiny.pt"]
    assert engine.revision == exact.revision
    loaded(replace(BUNDLE, url=url))  # nobody serves it now


def test_without_network_and_file_it_is_said_where_the_file_goes(empty: Path, free_port: int) -> None:
    bundle = replace(BUNDLE, url=f"http://127.0.0.1:{free_port}/tiny.pt")
    with pytest.raises(EngineLoadError, match="could not be downloaded") as caught:
        loaded(bundle)
    for needed in (bundle.url, str(empty / "hub" / "checkpoints" / "tiny.pt"), "set TORCH_HOME", "refused"):
        assert needed in str(caught.value)
    assert not list(empty.rglob("*.*"))
    with pytest.raises(EngineLoadError, match="cannot be read"):
        assert MmsEngine("cpu", "fp32", bundle).revision


def test_a_download_that_is_cut_off_leaves_nothing(empty: Path) -> None:
    with (
        serving(b"half", promised=8) as url,
        pytest.raises(EngineLoadError, match="it ended after 4 of 8 bytes"),
    ):
        loaded(replace(BUNDLE, url=url))
    assert not list(empty.rglob("*.*"))


def test_another_file_than_the_published_one_is_not_downloaded(empty: Path) -> None:
    with serving(b"half", promised=4) as url, pytest.raises(EngineLoadError, match="instead of abc, and was not kept"):
        loaded(replace(BUNDLE, url=url, sha256="abc"))
    assert not list(empty.rglob("*.*"))


def test_weights_of_ones_own_are_taken_with_a_warning(home: Path, exact: MmsEngine) -> None:
    with capture_logs() as logs:
        assert loaded(replace(BUNDLE, sha256=MMS_FA.sha256)).revision == exact.revision
    (warning,) = logs
    assert (warning["event"], warning["log_level"]) == ("not the published weights", "warning")
    assert warning["file"] == str(home / "hub" / "checkpoints" / "tiny.pt")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_refused(empty: Path, keep: int) -> None:
    path = write(BUNDLE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EngineLoadError, match="is damaged, cut off, or no file of weights") as caught:
        loaded()
    assert str(path) in str(caught.value)
    assert BUNDLE.url in str(caught.value)
    assert empty in path.parents


def test_a_pickle_that_would_run_code_is_refused(empty: Path) -> None:
    mark = empty / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.mkdir, (mark,)

    write(BUNDLE, {"aux.weight": Trap()})
    with pytest.raises(EngineLoadError, match="no file of weights"):
        loaded()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "TypeError"),
        ({}, "KeyError: 'aux.weight'"),
        ({1: torch.zeros(1), "aux.weight": torch.zeros(31, 32), "aux.bias": torch.zeros(31)}, "AttributeError"),
        ({"aux.weight": torch.zeros(31, 32), "aux.bias": torch.zeros(31)}, "Missing key"),
    ],
)
def test_a_file_of_something_else_is_refused(empty: Path, content: object, found: str) -> None:
    path = write(BUNDLE, content)
    with pytest.raises(EngineLoadError, match=f"bytes, but not the weights of this model .*{found}") as caught:
        loaded()
    assert f"{path} has {path.stat().st_size} bytes" in str(caught.value)
    assert "move it out of the way" in str(caught.value)
    assert empty in path.parents


def test_weights_of_another_shape_are_refused(empty: Path) -> None:
    write(BUNDLE, state(replace(BUNDLE, params={**BUNDLE.params, "encoder_ff_interm_features": 48})))
    with pytest.raises(EngineLoadError, match=r"not the weights of this model .*size mismatch"):
        loaded()
    assert empty.is_dir()


def test_weights_may_have_the_older_names_of_weight_norm(empty: Path, home: Path, exact: MmsEngine) -> None:
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in torch.load(home / "hub" / "checkpoints" / "tiny.pt", weights_only=True).items()
    }
    assert {name for name in older if "weight_" in name}
    write(BUNDLE, older)
    assert np.array_equal(computed(loaded(), several()[:1])[0], computed(exact, several()[:1])[0])
    assert empty.is_dir()


def test_the_weights_stay_what_they_were_when_the_file_is_written_anew(empty: Path) -> None:
    path = write(BUNDLE)
    engine = loaded()
    before = engine.align(several())
    path.write_bytes(b"")
    assert engine.align(several()) == before
    assert empty.is_dir()
