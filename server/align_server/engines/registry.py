"""Which models can be served, by name, and how to make their engines.

Describing a model needs neither torch, nor its weights in memory, nor the network: `fetch` alone downloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align_server.engines import hub
from align_server.engines.ctc import bundle, checkpoint
from align_server.engines.engine import EngineLoadError, Progress, silent
from align_server.engines.replicas import Replicas
from align_server.engines.sphinx.model import LANGUAGES, LICENCE, NAME, model_folder
from align_server.engines.whisper import checkpoint as whisper
from align_server.engines.whisper import openai

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_server.engines.engine import Engine

DEFAULT_MODEL = NAME
MMS = bundle.NAME
CTC = "ctc:"  # followed by the folder of a checkpoint, or its id on the Hugging Face hub
WHISPER = "whisper:"  # followed by a folder of transformers, its id on the hub, or a .pt file of OpenAI
SETTINGS = {CTC: checkpoint.SETTINGS, WHISPER: whisper.SETTINGS}  # files that are downloaded with the weights
ON_HUB = "not downloaded yet"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a user chooses by. `size_bytes` is that of the weights on disk, 0 where they are not there."""

    name: str
    languages: tuple[str, ...]
    licence: str
    size_bytes: int
    note: str = ""
    transcribes: bool = False  # whether it can find words, too
    phones: bool = False  # whether it knows the phones of words
    remote: bool = False  # whether it comes from elsewhere: `fetch` is to be called before `create`


def absolute(name: str) -> str:
    """The name with its folder, if it has one, as an absolute path: a server may run in another folder."""
    prefix, rest = _parts(name)
    return f"{prefix}{Path(rest).expanduser().absolute()}" if prefix and _reference(name) is None else name


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
            phones=True,
        )
    if name == MMS:
        return ModelDescription(
            name=MMS,
            languages=(),
            licence=bundle.LICENCE,
            size_bytes=bundle.MMS_FA.size_bytes,
            note="torchaudio's MMS_FA, of 1130 languages; its licence allows no commercial use",
            remote=True,
        )
    prefix, _ = _parts(name)
    if not prefix:
        raise EngineLoadError(
            f"there is no model {name!r}; there are {DEFAULT_MODEL}, {MMS}, local checkpoints as {CTC}FOLDER, "
            f"{WHISPER}FOLDER or {WHISPER}FILE.pt, and those of the Hugging Face hub as {CTC}OWNER/NAME or "
            f"{WHISPER}OWNER/NAME"
        )
    reference = _reference(name)
    transcribes = prefix == WHISPER
    folder = _folder(name)
    if folder is None:
        return ModelDescription(name, (), "", 0, ON_HUB, transcribes, remote=True)
    found = whisper.describe(folder) if transcribes else checkpoint.describe(folder, _languages(reference))
    where = f"from the hub at commit {folder.name}" if reference else "read from disk"
    return ModelDescription(
        name,
        found.languages,
        found.licence,
        found.size_bytes,
        f"a {'Whisper' if transcribes else 'CTC'} checkpoint, {where}",
        transcribes,
        remote=reference is not None,
    )


def fetch(name: str, progress: Progress = silent, device: str = "auto") -> ModelDescription:
    """Download what the model of that name lacks on this machine, and describe it anew.

    Raises EngineLoadError, for a `device` that is not there too: before anything is downloaded for it.
    """
    if device != "auto":
        _devices(device)
    if name == MMS and not bundle.MMS_FA.path.exists():
        bundle.MMS_FA.download(progress)
    if reference := _reference(name):
        hub.fetch(reference, SETTINGS[_parts(name)[0]], progress)
    return describe(name)


def create(name: str, device: str, precision: str = "auto") -> Engine:
    """Make the engine of that name, not yet loaded; downloads nothing.

    `device` is auto, cpu, cuda, cuda:N or mps. Auto is the best that is there; of several GPUs, which cuda means, each
    has a replica. `precision` is auto, fp32, bf16 or int8; a model that has only one computes in that.
    Raises EngineLoadError for an unknown name, device or precision, and for a model of the hub that was not fetched.
    """
    import torch  # noqa: PLC0415  slow to import: only a server that computes needs it

    # Batches run side by side, one per core; threads inside each would only get in each other's way.
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: convolutions on GPUs would take 10 bits of its 23
    describe(name)
    if name == DEFAULT_MODEL:
        from align_server.engines.sphinx.engine import SphinxEngine  # noqa: PLC0415  imports torch

        # The model is too small for a GPU to help: auto means the CPU.
        return _on("cpu" if device == "auto" else device, SphinxEngine)
    if name == MMS:
        from align_server.engines.ctc.mms import MmsEngine  # noqa: PLC0415  imports torch and torchaudio

        return _on(device, lambda one: MmsEngine(one, precision))
    folder = _folder(name)
    if folder is None:
        raise EngineLoadError(f"{name} is {ON_HUB}")
    if name.startswith(WHISPER):
        from align_server.engines.whisper.engine import WhisperEngine  # noqa: PLC0415  imports torch

        return _on(device, lambda one: WhisperEngine(name, folder, one, precision))
    from align_server.engines.ctc.engine import CtcEngine  # noqa: PLC0415  imports torch and transformers

    languages = _languages(_reference(name))
    return _on(device, lambda one: CtcEngine(name, folder, one, precision, languages))


def _parts(name: str) -> tuple[str, str]:
    """What kind of checkpoint a name means and which; without a kind where it is the name of a model of our own."""
    for prefix in (CTC, WHISPER):
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return "", name


def _reference(name: str) -> hub.Reference | None:
    """What a name means on the hub; None where it means something on this machine."""
    prefix, rest = _parts(name)
    return hub.Reference.parse(rest) if prefix and not rest.endswith(openai.SUFFIX) else None


def _languages(reference: hub.Reference | None) -> tuple[str, ...]:
    """Those whose adapters are wanted; none where a name does not say."""
    return reference.languages if reference else ()


def _folder(name: str) -> Path | None:
    """Where a checkpoint is on this machine; None where it is on the hub alone."""
    reference = _reference(name)
    return hub.snapshot(reference) if reference else Path(_parts(name)[1])


def _on(device: str, make: Callable[[str], Engine]) -> Engine:
    """The engine that `make` gives for a device; for several GPUs, one on each. Raises EngineLoadError for none."""
    engines = [make(one) for one in _devices(device)]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _devices(device: str) -> list[str]:
    """The devices that a name means, by what is there. Raises EngineLoadError for none."""
    from align_server.engines.device import found  # noqa: PLC0415  imports torch

    devices = found("cuda") or found("mps") or ["cpu"] if device == "auto" else found(device)
    if not devices:
        raise EngineLoadError(f"this machine has no {device} device that torch can use; leave --device out, or use cpu")
    return devices
