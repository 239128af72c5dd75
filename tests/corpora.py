"""The recordings beside the project, as their manifests describe them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def manifest(corpus: Path, name: str) -> list[dict[str, Any]]:
    """What there is of each recording of the set `name`."""
    path = corpus / "speech" / name / "manifest.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries
