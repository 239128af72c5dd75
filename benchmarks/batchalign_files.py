"""Aligns CHAT files with PyPI batchalign's own `mms-fa`, as its command line does, in one process.

Runs in batchalign's own environment and is told what to do line by line: after "ready", each line on standard input is
a JSON list of transcripts with a .wav beside each, which are aligned and written again beside them; the answer is a
line with the seconds that it took, or with what went wrong.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import batchalign._core as core  # type: ignore[import-not-found]
from batchalign import recipes
from batchalign.backends.fa import Wav2Vec2FaBackend  # type: ignore[import-not-found]


def main() -> None:
    """Answer until standard input ends."""
    pipeline = recipes.align(fa_backend=Wav2Vec2FaBackend(device="cpu"), cache=core.CacheSpec.bypass())
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        paths = json.loads(line)
        sources = []
        for path in paths:
            source = core.ChatInput(path=path, source_id=path)
            source.media = str(Path(path).with_suffix(".wav"))
            sources.append(source)
        outcomes = pipeline.run(sources)
        if failed := [str(one.error) for one in outcomes if one.is_failed]:
            print(failed[0].replace("\n", " "), flush=True)
            continue
        for path, outcome in zip(paths, outcomes, strict=True):
            outcome.write(f"{path}.aligned")
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
