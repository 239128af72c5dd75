"""The search for utterances in a long recording, on evidence whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from align_server.engines import search as module
from align_server.engines.engine import Scanning
from align_server.engines.search import Search

SYMBOLS = 12  # the last but one is silence, the last unknown sound
SILENCE, UNKNOWN = SYMBOLS - 2, SYMBOLS - 1
SCANNING = Scanning(frame_ms=10, symbols=SYMBOLS, silence=SILENCE)

Words = list[tuple[int, ...]]


def transcript(count: int, seed: int = 1) -> list[Words]:
    rng = np.random.default_rng(seed)

    def word() -> tuple[int, ...]:
        return tuple(map(int, rng.integers(SILENCE, size=rng.integers(2, 6))))

    return [[word() for _ in range(rng.integers(2, 7))] for _ in range(count)]


class Recording:
    """Evidence that is put together frame by frame; `noise` is how far it strays."""

    def __init__(self, seed: int = 2, noise: float = 0.5) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise = noise
        self._frames: list[np.ndarray] = []

    @property
    def frames(self) -> int:
        return len(self._frames)

    @property
    def evidence(self) -> np.ndarray:
        return np.array(self._frames, np.float32)

    def silence(self, frames: int) -> None:
        for _ in range(frames):
            self._add(SILENCE, unknown=0.0)

    def babble(self, frames: int) -> None:
        """Speech that no transcript has."""
        while frames > 0:
            self._say(int(self._rng.integers(SILENCE)), 3)
            frames -= 3

    def say(self, words: Words) -> tuple[int, int]:
        """Where an utterance is, in ms."""
        begin = self.frames
        for word in words:
            for symbol in word:
                self._say(symbol, int(self._rng.integers(2, 6)))
        return 10 * begin, 10 * self.frames

    def _say(self, symbol: int, frames: int) -> None:
        for _ in range(frames):
            self._add(symbol, unknown=-1.5)

    def _add(self, symbol: int, unknown: float) -> None:
        frame = np.minimum(0.0, -4 + self._noise * self._rng.normal(size=SYMBOLS))
        frame[symbol] = 0.0
        frame[UNKNOWN] = unknown
        self._frames.append(frame)


def found(search: Search, evidence: np.ndarray, piece: int = 500) -> list[module.Place | None]:
    for start in range(0, len(evidence), piece):
        search.feed(evidence[start : start + piece])
    return search.finish()


def near(place: module.Place | None, truth: tuple[int, int]) -> bool:
    return place is not None and abs(place.start_ms - truth[0]) <= 20 and abs(place.end_ms - truth[1]) <= 20


def test_utterances_are_found_between_silence_and_speech_that_is_not_theirs() -> None:
    said, recording, truth = transcript(40), Recording(), []
    for i, words in enumerate(said):
        recording.silence(20)
        if i % 3 == 0:
            recording.babble(200)
            recording.silence(5)
        truth.append(recording.say(words))
    places = found(Search(said, SCANNING), recording.evidence)
    assert all(map(near, places, truth))
    assert all(place is not None and place.score > 1 for place in places)


def test_the_size_of_the_pieces_makes_no_difference() -> None:
    said, recording = transcript(10), Recording()
    for words in said:
        recording.silence(30)
        recording.say(words)
    places = [found(Search(said, SCANNING), recording.evidence, piece) for piece in (1, 7, 500, 10**6)]
    assert all(one == places[0] for one in places)


def test_what_was_not_said_is_left_out_or_scores_low_and_its_neighbours_stay() -> None:
    said, recording, truth = transcript(20), Recording(), {}
    for i, words in enumerate(said):
        recording.silence(30)
        if i not in {4, 11}:  # nothing is said there at all
            truth[i] = recording.say(words if i != 15 else transcript(1, seed=9)[0])  # or something else is
    places = found(Search(said, SCANNING), recording.evidence)
    assert all(near(places[i], where) for i, where in truth.items() if i != 15)
    for i in (4, 11, 15):
        place = places[i]
        assert place is None or place.score < 0.5  # those that were said have more than 1


def test_an_utterance_that_nothing_can_say_is_not_found() -> None:
    said: list[Words] = [[(1, 2, 3), (4,)], [()], [(5, 6), (), (7, 8, 9)]]
    recording = Recording()
    recording.silence(10)
    first = recording.say([(1, 2, 3), (4,)])
    recording.silence(10)
    last = recording.say([(5, 6), (7, 8, 9)])
    recording.silence(10)
    places = found(Search(said, SCANNING), recording.evidence)
    assert near(places[0], first)
    assert places[1] is None
    assert near(places[2], last)


def test_a_pause_within_an_utterance_belongs_to_it() -> None:
    recording = Recording()
    recording.silence(20)
    start, _ = recording.say([(1, 2, 3, 4)])
    recording.silence(40)
    _, end = recording.say([(5, 6, 7, 8)])
    recording.silence(20)
    (place,) = found(Search([[(1, 2, 3, 4), (5, 6, 7, 8)]], SCANNING), recording.evidence)
    assert near(place, (start, end))


@pytest.mark.parametrize("left", [0, 1])
def test_a_recording_may_end_with_its_last_word(left: int) -> None:
    said, recording = transcript(3), Recording()
    truth = []
    for words in said:
        recording.silence(10)
        truth.append(recording.say(words))
    recording.silence(left)
    assert all(map(near, found(Search(said, SCANNING), recording.evidence), truth))


def test_a_recording_that_ends_too_early_loses_only_what_it_lacks() -> None:
    said, recording, truth = transcript(10), Recording(), []
    for words in said[:6]:
        recording.silence(10)
        truth.append(recording.say(words))
    places = found(Search(said, SCANNING), recording.evidence)
    assert all(map(near, places, truth))
    assert all(place is None or place.score < 0.2 for place in places[6:])


def test_nothing_is_found_in_nothing() -> None:
    assert Search(transcript(3), SCANNING).finish() == [None] * 3
    assert Search([], SCANNING).finish() == []


def test_symbols_may_give_way_to_silence_where_they_are_tokens_of_ctc() -> None:
    said: list[Words] = [[(1, 2), (3, 4)], [(5, 6, 7)]]
    recording = Recording()
    spans = []
    for words in said:
        recording.silence(50)
        begin = recording.frames
        for symbol in (symbol for word in words for symbol in word):
            recording._say(symbol, 1)
            recording.silence(4)
        spans.append((10 * begin, 10 * (recording.frames - 4)))
    recording.silence(50)
    places = found(Search(said, Scanning(10, SYMBOLS, SILENCE, gives_way=True)), recording.evidence)
    for place, (start, end) in zip(places, spans, strict=True):
        assert place is not None
        assert abs(place.start_ms - start) <= 20
        assert abs(place.end_ms - end) <= 100  # the last token may last into the silence after it


def test_records_grow_with_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    said, recording = transcript(30), Recording()
    truth = []
    for words in said:
        recording.silence(20)
        truth.append(recording.say(words))
    usual = found(Search(said, SCANNING), recording.evidence)
    monkeypatch.setattr(module, "RECORDS", 700)  # no more than a frame may need
    assert found(Search(said, SCANNING), recording.evidence) == usual
