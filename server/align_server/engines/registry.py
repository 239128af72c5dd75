"""Which models can be served, by name, and how to make their engines.

Describing a model needs neither torch nor its weights in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align_server.engines.ctc import bundle, checkpoint
from align_server.engines.engine import EngineLoadError
from align_server.engines.sphinx.model import LANGUAGES, LICENCE, NAME, model_folder
from align_server.engines.whisper import checkpoint as whisper

if TYPE_CHECKING:
    from align_server.engines.engine import Engine

DEFAULT_MODEL = NAME
MMS = bundle.NAME
CTC = "ctc:"  # followed by the folder of a checkpoint
WHISPER = "whisper:"  # followed by a folder of transformers, or a .pt file of OpenAI


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a user chooses by. `size_bytes` is that of the weights on disk, 0 where they are not there."""

    name: str
    languages: tuple[str, ...]
    licence: str
    size_bytes: int
    note: str = ""
    transcribes: bool = False  # whether it can find words, too


def absolute(name: str) -> str:
    """The name with its folder, if it has one, as an absolute path: a server may run in another folder."""
    for prefix in (CTC, WHISPER):
        if name.startswith(prefix):
            return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().absolute()}"
    return name


def describe(name: str) -> ModelDescription:
    """What a user chooses the model of that name by. Reads the disk. Raises EngineLoadError for an unknown name."""
    if name == DEFAULT_MODEL:
        weights = model_folder() / "en-us"
        return ModelDescription(
            name=DEFAULT_MODEL,
            languages=LANGUAGES,
            licence=LICENCE,
            size_bytes=sum(path.stat().st_size for path in weights.iterdir() if path.is_file()),
            note="CMU Sphinx US English, inside the pocketsphinx wheel",
        )
    if name == MMS:
        return ModelDescription(
            name=MMS,
            languages=(),
            licence=bundle.LICENCE,
            size_bytes=bundle.MMS_FA.size_bytes,
            note="torchaudio's MMS_FA, of 1130 languages; its licence allows no commercial use",
        )
    if name.startswith(CTC):
        found = checkpoint.describe(Path(name.removeprefix(CTC)))
        return ModelDescription(
            name, found.languages, found.licence, found.size_bytes, "a CTC checkpoint, read from disk"
        )
    if name.startswith(WHISPER):
        one = whisper.describe(Path(name.removeprefix(WHISPER)))
        return ModelDescription(
            name, one.languages, one.licence, one.size_bytes, "a Whisper checkpoint, read from disk", transcribes=True
        )
    raise EngineLoadError(
        f"there is no model {name!r}; there are {DEFAULT_MODEL}, {MMS}, and local checkpoints as {CTC}FOLDER, "
        f"{WHISPER}FOLDER or {WHISPER}FILE.pt"
    )


def create(name: str, device: str) -> Engine:
    """Make the engine of that name, not yet loaded. Raises EngineLoadError for an unknown name or device."""
    import torch  # noqa: PLC0415  slow to import: only a server that computes needs it

    # Batches run side by side, one per core; threads inside each would only get in each other's way.
    torch.set_num_threads(1)
    describe(name)
    if name == DEFAULT_MODEL:
        from align_server.engines.sphinx.engine import SphinxEngine  # noqa: PLC0415  imports torch

        # The model is too small for a GPU to help: auto means the CPU.
        return SphinxEngine(device="cpu" if device == "auto" else _present(device))
    if name == MMS:
        from align_server.engines.ctc.mms import MmsEngine  # noqa: PLC0415  imports torch and torchaudio

        return MmsEngine(_best(device))
    if name.startswith(WHISPER):
        from align_server.engines.whisper.engine import WhisperEngine  # noqa: PLC0415  imports torch

        return WhisperEngine(name, Path(name.removeprefix(WHISPER)), _best(device))
    from align_server.engines.ctc.engine import CtcEngine  # noqa: PLC0415  imports torch and transformers

    return CtcEngine(name, Path(name.removeprefix(CTC)), _best(device))


def _best(device: str) -> str:
    import torch  # noqa: PLC0415  see create

    if device != "auto":
        return _present(device)
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _present(device: str) -> str:
    import torch  # noqa: PLC0415  see create

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise EngineLoadError(f"this machine has no {device} device that torch can use; leave --device out, or use cpu")
    return device
