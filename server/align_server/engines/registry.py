"""Which models can be served, by name, and how to make their engines.

Describing a model needs neither torch nor its weights in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.model import LANGUAGES, LICENCE, NAME, model_folder

if TYPE_CHECKING:
    from align_server.engines.engine import Engine

DEFAULT_MODEL = NAME


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a user chooses by. `size_bytes` is that of the weights on disk, 0 where they are not there."""

    name: str
    languages: tuple[str, ...]
    licence: str
    size_bytes: int
    note: str = ""


def available() -> list[ModelDescription]:
    """Every model that can be served here, the default first."""
    weights = model_folder() / "en-us"
    return [
        ModelDescription(
            name=DEFAULT_MODEL,
            languages=LANGUAGES,
            licence=LICENCE,
            size_bytes=sum(path.stat().st_size for path in weights.iterdir() if path.is_file()),
            note="CMU Sphinx US English, inside the pocketsphinx wheel",
        )
    ]


def create(name: str, device: str) -> Engine:
    """Make the engine of that name, not yet loaded. Raises EngineLoadError for an unknown name or device."""
    import torch  # noqa: PLC0415  slow to import: only a server that computes needs it

    # Batches run side by side, one per core; threads inside each would only get in each other's way.
    torch.set_num_threads(1)
    if name == DEFAULT_MODEL:
        from align_server.engines.sphinx.engine import SphinxEngine  # noqa: PLC0415  imports torch

        # The model is too small for a GPU to help: auto means the CPU.
        return SphinxEngine(device="cpu" if device == "auto" else _present(device))
    known = ", ".join(model.name for model in available())
    raise EngineLoadError(f"there is no model {name!r}; this server can serve: {known}")


def _present(device: str) -> str:
    import torch  # noqa: PLC0415  see create

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise EngineLoadError(f"this machine has no {device} device that torch can use; leave --device out, or use cpu")
    return device
