"""Every CHAT file of the corpora parses, and giving it times changes bullets and %wor lines alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from align_client.chat import Bullet, Document, UtteranceTimes, WordTime

if TYPE_CHECKING:
    from pathlib import Path

LINE_OF_ITS_OWN = re.compile(rb"(?m)^(?!(?:\r?\n)*[\t ])")
LAST_BULLET = re.compile(rb' ?\x15(?:%\w+:"[^"]*"_)?\d+_\d+-?\x15(?!.*\x15\d)', re.DOTALL)


def tiers(data: bytes) -> list[bytes]:
    """The tiers and blank lines but for %wor, each with its continuation lines; apart from the code under test."""
    found = [tier for tier in LINE_OF_ITS_OWN.split(data) if tier and not tier.startswith(b"%wor:")]
    return [*found[:-1], found[-1].rstrip(b"\r\n")]


def differ_by_a_bullet_at_most(before: bytes, after: bytes) -> bool:
    if before == after:
        return True
    without = LAST_BULLET.sub(b"", after)
    return before.startswith(b"*") and without in {before, LAST_BULLET.sub(b"", before)}


def times_for(document: Document) -> dict[int, UtteranceTimes]:
    times = {}
    for utterance in document.utterances:
        if utterance.problem is None:
            start = utterance.index * 1000
            words = tuple(
                None if i % 5 == 4 else WordTime(start + i, start + i + 1) for i in range(len(utterance.items))
            )
            times[utterance.index] = UtteranceTimes(Bullet(start, start + 999), words)
    return times


def chat_files(corpus_dir: Path) -> list[Path]:
    files = sorted((corpus_dir / "chat").rglob("*.cha"))
    assert len(files) > 190
    return files


@pytest.mark.corpus
def test_every_file_is_read_and_comes_out_identical(corpus_dir: Path) -> None:
    for path in chat_files(corpus_dir):
        data = path.read_bytes()
        assert Document.parse(data).with_times({}) == data, path


@pytest.mark.corpus
def test_times_change_only_bullets_and_wor_lines(corpus_dir: Path) -> None:
    for path in chat_files(corpus_dir):
        data = path.read_bytes()
        document = Document.parse(data)
        result = document.with_times(times_for(document))
        for before, after in zip(tiers(data), tiers(result), strict=True):
            assert differ_by_a_bullet_at_most(before, after), path


@pytest.mark.corpus
def test_the_same_times_twice_are_a_fixed_point(corpus_dir: Path) -> None:
    for path in chat_files(corpus_dir):
        document = Document.parse(path.read_bytes())
        once = document.with_times(times_for(document))
        again = Document.parse(once)
        assert again.with_times(times_for(document)) == once, path
        assert [u.bullet for u in again.utterances if not u.problem] == [t.bullet for t in times_for(document).values()]


@pytest.mark.corpus
def test_reference_files_have_no_problem(corpus_dir: Path) -> None:
    for folder in ("reference", "align-cases", "with-audio", "cabnc/plain"):
        for path in sorted((corpus_dir / "chat" / folder).rglob("*.cha")):
            assert Document.parse(path.read_bytes()).problems == (), path


@pytest.mark.corpus
def test_an_aligned_files_own_wor_tier_is_written_again_as_it_was(corpus_dir: Path) -> None:
    data = (corpus_dir / "chat" / "with-audio" / "test.cha").read_bytes()
    document = Document.parse(data)
    times = {}
    for utterance in document.utterances:
        if utterance.wor:
            old = iter(utterance.wor)
            words = tuple(next(old).time if item.written else None for item in utterance.items)
            times[utterance.index] = UtteranceTimes(utterance.bullet, words)
    assert len(times) == 12
    assert document.with_times(times) == data
