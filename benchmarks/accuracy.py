"""How near word starts come to hand-labelled ones, through a running server, scored by the corpus's own program.

pocketsphinx's two-pass aligner does the same words beside it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import processes
from align_client import AsyncClient
from clients import LANGUAGE
from inputs import CORPORA, Utterance, hand_labelled, has_corpora
from rows import Row, Scale
from throughput import decoder, two_pass

WHAT = "word starts on hand-labelled speech"
MEAN_MS, WITHIN_25 = 16.5, 76.0

Words = list[dict[str, str | float | None]]


def measure(_scale: Scale) -> list[Row]:
    """Rows of the table; it is quick in any case."""
    if not has_corpora():
        return [Row(WHAT, "skipped: needs the recordings of ../shared/data, which are not here")]
    said = hand_labelled()
    with processes.server() as server:
        ours = score(asyncio.run(_through(server.address, said)))
    sphinx = decoder()
    theirs = score({one.id: _pocketsphinx(sphinx, one) for one in said})
    met = ours["mean"] <= MEAN_MS and ours["%<=25"] >= WITHIN_25 and not ours["missing"]
    target = f"mean at most {MEAN_MS} ms, {WITHIN_25:.0f} % within 25 ms, none missing"
    about = f"{sum(len(one.words) for one in said)} words"
    return [
        Row(f"{WHAT} ({about})", told(ours), target, met),
        Row("the same by pocketsphinx two-pass", told(theirs)),
    ]


async def _through(address: str, said: list[Utterance]) -> dict[str, Words]:
    async with AsyncClient(address) as client:
        results = [await client.align(one.pcm, one.words, language=LANGUAGE, sample_rate=16_000) for one in said]
    return {
        one.id: [{"word": word.text, "start": word.start, "end": word.end} for word in result.words]
        for one, result in zip(said, results, strict=True)
    }


def _pocketsphinx(sphinx: Any, utterance: Utterance) -> Words:
    found = two_pass(sphinx, utterance)
    assert len(found) == len(utterance.words)
    return [
        {"word": word, "start": start, "end": end} for word, (_, start, end) in zip(utterance.words, found, strict=True)
    ]


def score(times: dict[str, Words]) -> dict[str, float]:
    """The line of starts in the table that score.py prints, by column."""
    with tempfile.TemporaryDirectory() as folder:
        hypothesis = Path(folder) / "times.json"
        hypothesis.write_text(json.dumps(times), encoding="utf-8")
        reference = CORPORA / "speech" / "ae" / "manifest.json"
        command = [sys.executable, str(CORPORA / "score.py"), "--reference", str(reference)]
        done = subprocess.run([*command, "--hypothesis", str(hypothesis)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"score.py ended with {done.returncode}: {done.stderr}")
    lines = [line.split() for line in done.stdout.splitlines()]
    columns = next(line for line in lines if line[0] == "edge")
    starts = next(line for line in lines if line[0] == "starts")
    return {name: float(value) for name, value in zip(columns[1:], starts[1:], strict=True)}


def told(found: dict[str, float]) -> str:
    """What a score says, in a row."""
    return (
        f"mean {found['mean']:.1f} ms, median {found['median']:.1f} ms, {found['%<=25']:.1f} % within 25 ms, "
        f"{found['missing']:.0f} missing"
    )
