"""A checkpoint with an adapter for each of several languages, segments in them, and what transformers makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import Wav2Vec2ForCTC

from align_server.engines.engine import Segment, Word
from checkpoints import write_adapted
from emissions import prepared
from segments import segment

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from align_server.engines.ctc.engine import CtcEngine

LATIN: Final = "abcdefghijklmnopqrstuvwxyz"
LETTERS: Final = {  # no two languages have as many
    "eng": f"{LATIN}'",
    "cmn-script_simplified": "你好世界",
    "deu": f"{LATIN}äöüß",
    "ell": "αβγδεηιλοπρστω",
    "fin": f"{LATIN}äö",
    "fra": f"{LATIN}éèêàçùûîô",
    "rus": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "swh": LATIN,
    "tur": f"{LATIN}çğıöşü",
    "uzb-script_cyrillic": "абвгдежзийклмнопрстуфхцчшъэюяёўқғҳ",
    "uzb-script_latin": f"{LATIN}\u02bb,;",
}
WORDS: Final = {
    "eng": "hello",
    "cmn": "你好",
    "deu": "über",
    "ell": "γεια",
    "fin": "hyvää",
    "fra": "été",
    "rus": "привет",
    "swh": "habari",
    "tur": "gün",
    "uzb": "salom",
}
FILES: Final = {"cmn": "cmn-script_simplified", "uzb": "uzb-script_latin"}  # where they are not called by the code

CLOSE: Final = 5e-5  # of log posteriors that go down to -10


def write(folder: Path) -> Path:
    """Write the checkpoint into a folder, and return the folder."""
    # Fewer groups than real models have: oneDNN miscomputes those of less than 16 channels in bf16 on CPUs with AMX.
    return write_adapted(folder, LETTERS, num_conv_pos_embedding_groups=2)


def of(languages: Iterable[str]) -> list[Segment]:
    """A segment of its own length in each language, of one word twice."""
    words = [Word(WORDS[language], language) for language in languages]
    return [segment(word, word, seconds=1 + i / 10, seed=i) for i, word in enumerate(words)]


def expected(folder: Path, engine: CtcEngine, item: Segment, name: str) -> torch.Tensor:
    """What transformers computes with an adapter that it loaded itself."""
    load: Any = Wav2Vec2ForCTC.from_pretrained  # has no types
    model = load(folder).eval()
    model.load_adapter(name, local_files_only=True, use_safetensors=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.from_numpy(prepared(engine, item).given)[None]).logits[0]
    return logits
