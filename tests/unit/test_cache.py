"""The store of results: what is kept is found again, within its size, after crashes, beside other servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_server.cache import ResultCache, key
from align_server.engines.engine import Segment, Word, WordKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL_MB = 16
AUDIO = np.arange(16_000, dtype=np.int16)
WORDS = (Word("hello", "eng"), Word("", "", WordKind.PAUSE), Word("world", "eng"))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResultCache]:
    opened = ResultCache(tmp_path / "results", SMALL_MB)
    yield opened
    opened.close()


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


class TestKey:
    def test_what_a_result_depends_on_changes_it_and_the_id_does_not(self) -> None:
        base = key("r1", "cpu", Segment("1", AUDIO, WORDS))
        assert key("r1", "cpu", Segment("2", AUDIO.copy(), WORDS)) == base
        others = [
            key("r2", "cpu", Segment("1", AUDIO, WORDS)),
            key("r1", "cuda", Segment("1", AUDIO, WORDS)),
            key("r1", "cpu", Segment("1", AUDIO[1:], WORDS)),
            key("r1", "cpu", Segment("1", AUDIO[::-1].copy(), WORDS)),
            key("r1", "cpu", Segment("1", AUDIO, WORDS[:2])),
            key("r1", "cpu", Segment("1", AUDIO, (Word("hello", "deu"), *WORDS[1:]))),
            key("r1", "cpu", Segment("1", AUDIO, (WORDS[0], Word("", "", WordKind.UNKNOWN_SOUND), WORDS[2]))),
            key("r1", "cpu", Segment("1", AUDIO, WORDS, phones=True)),
            key("r1", "cpu", Segment("1", AUDIO, (), transcribe="")),
            key("r1", "cpu", Segment("1", AUDIO, (), transcribe="eng")),
        ]
        assert len({base, *others}) == 1 + len(others)

    def test_words_are_kept_apart(self) -> None:
        one = key("r", "cpu", Segment("1", AUDIO, (Word("a b", "eng"),)))
        two = key("r", "cpu", Segment("1", AUDIO, (Word("a", "eng"), Word("b", "eng"))))
        assert one != two


class TestResultCache:
    def test_what_is_kept_is_found_at_once_and_after_reopening(self, tmp_path: Path) -> None:
        cache = ResultCache(tmp_path / "results", SMALL_MB)
        assert cache.find(name(1)) is None
        cache.keep(name(1), b"one")
        assert cache.find(name(1)) == b"one"
        cache.close()
        again = ResultCache(tmp_path / "results", SMALL_MB)
        assert again.find(name(1)) == b"one"
        assert (again.hits, again.misses) == (1, 0)
        assert again.size_bytes > 0
        again.close()

    def test_it_stays_within_its_size_and_keeps_what_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("align_server.cache.WRITE_S", 0.0)
        cache = ResultCache(tmp_path / "results", SMALL_MB)
        result = os.urandom(8_000)
        for number in range(10_000):  # five times as much as fits
            cache.keep(name(number), result)
            if number % 100 == 0:
                assert cache.find(name(0)) == result, number
                while cache._kept:
                    time.sleep(0.001)
        cache.close()
        assert (tmp_path / "results" / "data.mdb").stat().st_size <= SMALL_MB << 20
        again = ResultCache(tmp_path / "results", SMALL_MB)
        assert again.find(name(9_999)) == result
        assert again.find(name(0)) == result
        assert again.find(name(1)) is None
        again.close()

    def test_two_servers_share_one(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from align_server.cache import ResultCache\n"
            f"c = ResultCache(Path(sys.argv[1]), {SMALL_MB}); c.keep(bytes(16), b'theirs'); c.close()"
        )
        ours = ResultCache(tmp_path / "results", SMALL_MB)
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "results")], check=True, timeout=60)
        assert ours.find(bytes(16)) == b"theirs"
        ours.close()

    def test_a_writer_that_is_killed_costs_at_most_its_last_second(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from align_server.cache import ResultCache\n"
            f"c = ResultCache(Path(sys.argv[1]), {SMALL_MB})\n"
            "n = 0\n"
            "while True:\n"
            "    c.keep(n.to_bytes(16, 'big'), b'x' * 500); n += 1\n"
            "    if n % 1000 == 0:\n"
            "        while c._kept: pass\n"
            "        print(n, flush=True)\n"
        )
        for _ in range(3):
            with subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "results")], stdout=subprocess.PIPE, text=True
            ) as writer:
                assert writer.stdout is not None
                written = int(writer.stdout.readline())
                writer.send_signal(signal.SIGKILL)
            cache = ResultCache(tmp_path / "results", SMALL_MB)
            assert all(cache.find(name(number)) == b"x" * 500 for number in range(written))
            cache.close()

    def test_a_damaged_store_costs_its_results_and_no_answer(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "data.mdb").write_bytes(b"no store" * 4096)
        cache = ResultCache(tmp_path / "results", SMALL_MB)
        assert cache.find(name(1)) is None
        cache.keep(name(1), b"one")
        assert cache.find(name(1)) is None
        cache.close()

    def test_a_folder_that_cannot_be_made_is_no_fault(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        cache = ResultCache(tmp_path / "file" / "results", SMALL_MB)
        assert cache.find(name(1)) is None
        cache.close()
