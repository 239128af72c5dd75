"""What is measured with: recordings with their words, and CHAT files made of them.

Takes the read sentences of ../shared/data beside the project where they are, else the project's own examples.
Knows CHAT and sound files; knows nothing of servers.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from align_client.chat.document import Document
from align_client.media.locate import find_media
from align_client.media.stream import SAMPLE_RATE, cut, read
from align_client.plan import plan
from align_client.sdk.types import WordKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

PROJECT = Path(__file__).resolve().parent.parent
CORPORA = PROJECT.parent / "shared" / "data"
SETS = ("ae", "commonvoice", "speechocean")
EXAMPLE_MS = 5_000  # about the length of a read sentence
GAP_S = 0.5  # of silence around each utterance of a CHAT file


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A recording and what is said in it; `pcm` is int16, mono, 16 kHz."""

    id: str
    pcm: npt.NDArray[np.int16]
    words: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.pcm) / SAMPLE_RATE


def has_corpora() -> bool:
    """Whether the recordings beside the project are there."""
    return (CORPORA / "speech").is_dir()


def utterances() -> list[Utterance]:
    """Every recording there is, by set; the examples' segments where there are no sets."""
    if not has_corpora():
        return list(_of_examples())
    return [utterance for name in SETS for utterance in of_set(CORPORA / "speech" / name)]


def grouped(seconds: float, said: Sequence[Utterance]) -> list[Utterance]:
    """Segments of up to that length, as align-client makes them: utterances that follow one another, where they fit."""
    made: list[Utterance] = []
    parts: list[Utterance] = []
    for utterance in (one for one in said if one.seconds <= seconds):
        if sum(part.seconds for part in parts) + utterance.seconds > seconds:
            made.append(_joined(parts))
            parts = []
        parts.append(utterance)
    return [*made, _joined(parts)]


def lasting(seconds: float, said: Sequence[Utterance]) -> list[Utterance]:
    """The same, with silence at the end of each to make it exactly that long."""
    samples = int(seconds * SAMPLE_RATE)
    return [
        Utterance(one.id, np.pad(one.pcm, (0, samples - len(one.pcm))), one.words) for one in grouped(seconds, said)
    ]


def _joined(parts: Sequence[Utterance]) -> Utterance:
    words = tuple(itertools.chain.from_iterable(part.words for part in parts))
    return Utterance("+".join(part.id for part in parts), np.concatenate([part.pcm for part in parts]), words)


def hand_labelled() -> list[Utterance]:
    """The recordings whose word times are known, with the words as the labels have them."""
    folder = CORPORA / "speech" / "ae"
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [
        Utterance(entry["id"], read(folder / entry["audio"]), tuple(word["word"] for word in entry["words"]))
        for entry in entries
    ]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A CHAT file with its recording beside it."""

    path: Path
    seconds: float
    utterances: int


def conversation(path: Path, said: Sequence[Utterance], seconds: float, *, first: int = 0) -> Conversation:
    """Write a CHAT file with bullets, and its recording, of utterances in turn from `first` on, as long as asked."""
    gap = np.zeros(int(GAP_S * SAMPLE_RATE), np.int16)
    lines: list[str] = []
    written = 0
    with soundfile.SoundFile(path.with_suffix(".wav"), "w", SAMPLE_RATE, 1, "PCM_16") as sound:
        for utterance in itertools.islice(itertools.cycle(said), first, None):
            if written >= seconds * SAMPLE_RATE:
                break
            sound.write(gap)
            start = written + len(gap)
            sound.write(utterance.pcm)
            written = start + len(utterance.pcm)
            times = f"{start * 1000 // SAMPLE_RATE}_{written * 1000 // SAMPLE_RATE}"
            lines.append(f"*{'PAR' if len(lines) % 2 else 'INV'}:\t{' '.join(utterance.words)} . \x15{times}\x15")
    head = [
        "@UTF8",
        "@Begin",
        "@Languages:\teng",
        "@Participants:\tINV Investigator, PAR Participant",
        "@ID:\teng|bench|INV|||||Investigator|||",
        "@ID:\teng|bench|PAR|||||Participant|||",
        f"@Media:\t{path.stem}, audio",
    ]
    path.write_text("\n".join([*head, *lines, "@End", ""]), encoding="utf-8")
    return Conversation(path, written / SAMPLE_RATE, len(lines))


def of_set(folder: Path) -> Iterator[Utterance]:
    """The recordings of a folder with a manifest."""
    for entry in json.loads((folder / "manifest.json").read_text(encoding="utf-8")):
        words = re.findall(r"[a-z]+(?:'[a-z]+)*", entry["text"].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        yield Utterance(entry["id"], read(folder / entry["audio"]), tuple(words))


def _of_examples() -> Iterator[Utterance]:
    for path in sorted((PROJECT / "examples").glob("*.cha")):
        document = Document.parse(path.read_bytes())
        segments = plan(document.utterances, duration_ms=None, max_segment_ms=EXAMPLE_MS).segments
        pieces = cut(find_media(path, document.media, ()), [segment.span for segment in segments])
        for number, (segment, piece) in enumerate(zip(segments, pieces, strict=True)):
            words = tuple(word.text.lower() for word in segment.words if word.kind is WordKind.WORD)
            yield Utterance(f"{path.stem}-{number}", piece.pcm, words)
