"""Hand-labelled words through a running server: how near the times are, and that company does not change them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from align_client import AsyncClient, Client, Word
from align_client.media.stream import read

if TYPE_CHECKING:
    from pathlib import Path

    from support import ServerProcess

pytestmark = pytest.mark.corpus


def manifest(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def words_of(item: dict[str, Any]) -> list[Word]:
    texts = [word["word"] for word in item["words"]] if "words" in item else re.findall(r"[\w']+", item["text"])
    return [Word(text, "eng") for text in texts]


def test_word_starts_are_near_where_a_person_put_them(server: ServerProcess, corpus_dir: Path, tmp_path: Path) -> None:
    folder = corpus_dir / "speech" / "ae"
    found = {}
    with Client(server.address) as client:
        for item in manifest(folder):
            result = client.align(folder / item["audio"], words_of(item))
            found[item["id"]] = [{"word": word.text, "start": word.start, "end": word.end} for word in result.words]
    (tmp_path / "found.json").write_text(json.dumps(found))
    score = [sys.executable, corpus_dir / "score.py", "--reference", folder / "manifest.json"]
    done = subprocess.run(
        [*map(str, score), "--hypothesis", str(tmp_path / "found.json")], capture_output=True, text=True, check=True
    )
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("starts"))
    head = next(line.split() for line in done.stdout.splitlines() if line.startswith("edge"))
    figures = {name: float(value) for name, value in zip(head[1:], row[1:], strict=True)}
    assert figures["n"] == 54
    assert figures["missing"] == 0
    assert figures["mean"] <= 16.5
    assert figures["%<=25"] >= 76


async def test_company_changes_no_time(server: ServerProcess, corpus_dir: Path) -> None:
    """The same words alone, and among dozens of longer segments of several clients."""
    speech = corpus_dir / "speech"
    short = [(read(speech / "ae" / item["audio"]), words_of(item)) for item in manifest(speech / "ae")]
    others = [(read(speech / "commonvoice" / i["audio"]), words_of(i)) for i in manifest(speech / "commonvoice")[:24]]
    async with AsyncClient(server.address) as client:
        alone = [(await client.align(pcm, words, sample_rate=16_000)).words for pcm, words in short]

    async def crowd(name: int) -> list[Any]:
        async with AsyncClient(server.address) as client, client.stream() as stream:
            mixed = [*others[name::2], *short, *others[1 - name :: 2]]
            answers = [await stream.submit(pcm, words) for pcm, words in mixed]
            results = await asyncio.gather(*answers)
            start = len(others[name::2])
            return results[start : start + len(short)]

    for together in await asyncio.gather(crowd(0), crowd(1)):
        assert together == alone
