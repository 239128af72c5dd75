"""Imports run one way, and the client stays thin."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT, SERVER = PROJECT / "client" / "align_client", PROJECT / "server" / "align_server"
WIRE = {"grpc", "align_proto", "google", "grpc_health"}
# What a module of the folder or file must not import, typing included.
RULES = {
    CLIENT: {"align_server", "torch", "torchaudio", "transformers"},
    CLIENT / "chat": WIRE
    | {"align_client.media", "align_client.sdk", "align_client.plan", "align_client.corpus", "numpy"},
    CLIENT / "media": WIRE | {"align_client.plan", "align_client.corpus", "align_client.cli"},
    CLIENT / "export": WIRE
    | {"align_client.sdk", "align_client.plan", "align_client.corpus", "align_client.cli", "numpy"},
    CLIENT / "records.py": WIRE | {"align_client"},
    CLIENT / "reuse.py": WIRE | {"align_client.corpus", "align_client.cli"},
    CLIENT / "unchanged.py": WIRE
    | {"align_client.sdk", "align_client.plan", "align_client.corpus", "align_client.cli"},
    CLIENT / "summary.py": WIRE | {"align_client.sdk", "align_client.corpus", "align_client.cli"},
    CLIENT / "plan.py": WIRE | {"align_client.corpus", "align_client.cli"},
    CLIENT / "sending.py": WIRE | {"align_client.corpus", "align_client.export", "align_client.cli"},
    CLIENT / "phones.py": WIRE | {"align_client.corpus", "align_client.cli"},
    CLIENT / "corpus.py": WIRE | {"align_client.cli"},
    SERVER / "engines": WIRE
    | {"align_server.scheduling", "align_server.service", "align_server.server", "align_client"},
    SERVER / "scheduling": WIRE | {"torch", "align_server.service", "align_server.server", "align_client"},
    SERVER / "service.py": {"torch", "align_server.server", "align_server.cli", "align_client"},
    SERVER / "stream.py": {"torch", "align_server.service", "align_server.server", "align_client"},
    SERVER / "wire.py": {"torch", "align_server.service", "align_server.stream", "align_server.server", "align_client"},
    SERVER / "metrics.py": WIRE | {"torch", "align_server.scheduling", "align_server.engines", "align_client"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("place", RULES, ids=lambda place: str(place.relative_to(PROJECT)))
def test_imports_run_one_way(place: Path) -> None:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    wrong = {
        f"{path.relative_to(PROJECT)} imports {name}"
        for path in files
        for name in imports(path)
        for forbidden in RULES[place]
        if name == forbidden or name.startswith(f"{forbidden}.")
    }
    assert wrong == set()


def test_a_client_process_never_loads_torch_or_the_server() -> None:
    code = (
        "import importlib, json, pkgutil, sys, align_client\n"
        "for module in pkgutil.walk_packages(align_client.__path__, 'align_client.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print(json.dumps(sorted(n for n in ('torch', 'transformers', 'align_server', 'uvloop') if n in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
