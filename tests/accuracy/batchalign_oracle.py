"""Writes the %wor words that PyPI batchalign chooses, as JSON, for a folder of CHAT files with utterance bullets.

Runs in batchalign's own environment: `python batchalign_oracle.py FOLDER AUDIO`. A fake aligner, plugged in where
its acoustic model goes, gives every word that it is asked for 10 ms; AUDIO need only be as long as the bullets.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

WORD_MS = 10


def main(folder: Path, audio: Path) -> None:
    """Print {relative path: {"chat": aligned text} or {"error": why it was refused}}."""
    import batchalign._core as core  # type: ignore[import-not-found]
    from batchalign import recipes
    from batchalign._core.proto import AsrSegment, AsrWord, FaOutput  # type: ignore[import-not-found]
    from batchalign.backends.base import FA, BatchPolicy  # type: ignore[import-not-found]

    class EvenAligner(FA):  # type: ignore[misc]
        """Gives the words of each utterance equal times, one after another."""

        name = "even-aligner"
        batch_policy = BatchPolicy(1, 0)

        def call(self, batch: list[Any], **_: Any) -> list[Any]:
            return [self._align(item) for item in batch]

        def _align(self, item: Any) -> Any:
            aligned = []
            for utterance in item.utterances:
                starts = (utterance.start_ms + WORD_MS * i for i in range(len(utterance.words)))
                words = [
                    AsrWord(text=word.text, start_ms=start, end_ms=start + WORD_MS)
                    for word, start in zip(utterance.words, starts, strict=True)
                ]
                aligned.append(
                    AsrSegment(
                        start_ms=utterance.start_ms,
                        end_ms=utterance.end_ms,
                        text=utterance.text,
                        speaker=utterance.speaker,
                        words=words,
                    )
                )
            return FaOutput(source_id=item.source_id, utterances=aligned)

    pipeline = recipes.align(fa_backend=EvenAligner(), cache=core.CacheSpec.bypass())
    answers: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*.cha")):
        source = core.ChatInput(path=str(path), source_id=str(path))
        source.media = str(audio)
        (outcome,) = pipeline.run([source])
        name = str(path.relative_to(folder))
        if outcome.is_failed:
            answers[name] = {"error": str(outcome.error)}
            continue
        with tempfile.TemporaryDirectory() as out:
            target = Path(out) / "aligned.cha"
            outcome.write(str(target))
            answers[name] = {"chat": target.read_text("utf-8")}
    json.dump(answers, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
