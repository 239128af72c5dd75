"""Phones cross the wire and the store as they were, and are fitted into the times that a transcript has."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_client.chat.document import Document
from align_client.chat.wor import WordTime
from align_client.export.transcript import Phone, SaidWord, read
from align_client.files import Job
from align_client.phones import _Answers, _fitted, phonetic
from align_client.sdk import types
from align_client.sdk import wire as ours
from align_client.sdk.errors import RequestRefused
from align_proto.v1 import align_pb2 as pb
from align_server import wire as theirs
from align_server.cache import ResultCache
from align_server.engines import engine
from align_server.scheduling.work import Invalid
from align_server.stream import Edge

if TYPE_CHECKING:
    from pathlib import Path

AUDIO = np.arange(8_000, dtype=np.int16)
WORDS = [types.Word("hi", "eng"), types.Word("漢字", "eng")]
FOUND = engine.Result(
    (
        engine.WordTiming(100, 300, 0.5, phones=(engine.Phone("HH", 100, 160), engine.Phone("AY", 160, 300))),
        engine.WordTiming(reason=engine.MissingReason.UNPRONOUNCEABLE, detail="why"),
    )
)


def edge(cache: ResultCache | None = None) -> Edge:
    nobody: Any = None
    return Edge(nobody, nobody, nobody, nobody, max_words=100, cache=cache)


def batcher(*, phones: bool) -> Any:
    model = SimpleNamespace(name="ctc:some", phones=phones, transcribes=False, max_segment_s=10.0, device="cpu")
    return SimpleNamespace(engine=model, revision="r")


def message(*, phones: bool) -> pb.Segment:
    made = pb.Segment()
    ours.fill(made, "1", AUDIO, WORDS, phones=phones)
    return made


class TestOnTheWire:
    def test_nothing_more_is_sent_where_they_are_not_asked_for(self) -> None:
        assert message(phones=True).ByteSize() == message(phones=False).ByteSize() + 2
        for asked in (False, True):
            sent = message(phones=asked)
            assert edge().segment(sent, sent.pcm, batcher(phones=True)).phones is asked

    def test_a_model_that_has_none_refuses_the_segment(self) -> None:
        sent = message(phones=True)
        with pytest.raises(Invalid, match="'ctc:some' has no phones") as caught:
            edge().segment(sent, sent.pcm, batcher(phones=False))
        assert caught.value.field == "segment.phones"

    def test_they_come_as_they_were_found_kept_or_not(self, tmp_path: Path) -> None:
        cache = ResultCache(tmp_path / "results", 16)
        here, able = edge(cache), batcher(phones=True)
        sent = message(phones=True)
        segment = here.segment(sent, sent.pcm, able)
        name, nothing = here.find(segment, able)
        assert nothing is None
        fresh = here.answer(segment, FOUND, name)
        kept = here.find(segment, able)[1]
        cache.close()
        assert kept is not None
        assert kept.cached
        hi, unknown = ours.timings(WORDS, kept.words)
        assert ours.timings(WORDS, fresh.words) == (hi, unknown)
        assert hi.phones == (types.Phone("HH", 0.1, 0.16), types.Phone("AY", 0.16, 0.3))
        assert "phones=(Phone(symbol='HH', start=0.1, end=0.16)," in repr(hi)
        assert unknown.phones == ()

    def test_an_answer_to_who_did_not_ask_has_none(self) -> None:
        sent = message(phones=False)
        assert not theirs.timings(FOUND)[0].phones
        segment = edge().segment(sent, sent.pcm, batcher(phones=True))
        assert not edge().answer(segment, FOUND, b"").words[0].phones


def timing(*phones: tuple[str, float, float]) -> types.WordTiming:
    """A word of these phones, in ms of a segment."""
    made = tuple(types.Phone(symbol, start / 1000, end / 1000) for symbol, start, end in phones)
    return types.WordTiming("w", made[0].start, made[-1].end, 0.5, phones=made)


def word(start_ms: int, end_ms: int) -> SaidWord:
    return SaidWord("w", WordTime(start_ms, end_ms))


HI = timing(("HH", 200, 260), ("AY", 260, 400))


class TestFitting:
    def test_a_word_of_the_same_length_keeps_the_lengths(self) -> None:
        assert _fitted([HI], word(7_200, 7_400)) == (Phone("HH", 7_200, 7_260), Phone("AY", 7_260, 7_400))

    def test_a_word_that_was_corrected_stretches_its_phones(self) -> None:
        assert _fitted([HI], word(1_000, 1_400)) == (Phone("HH", 1_000, 1_120), Phone("AY", 1_120, 1_400))

    def test_of_a_word_said_as_two_the_pause_stays(self) -> None:
        two = [timing(("N", 0, 100), ("UW", 100, 200)), timing(("Y", 300, 350), ("ER", 350, 400))]
        assert _fitted(two, word(0, 200)) == (
            Phone("N", 0, 50),
            Phone("UW", 50, 100),
            Phone("Y", 150, 175),
            Phone("ER", 175, 200),
        )

    @pytest.mark.parametrize(
        ("said", "of", "why"),
        [
            (HI, word(10, 11), "%wor gives it 1 ms, too short for its 2"),
            (HI, SaidWord("w", None), "it has no time in %wor"),
            (types.WordTiming("w", reason=types.MissingReason.NO_SPEECH), word(0, 9), "the audio has no signal"),
            (types.WordTiming("w", 0.1, 0.2), word(0, 9), "the server gave none"),
        ],
    )
    def test_what_cannot_be_fitted_says_why(self, said: types.WordTiming, of: SaidWord, why: str) -> None:
        assert _fitted([said], of) == why

    @given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(0, 10_000_000), st.integers(0, 5_000))
    def test_phones_fill_their_word_or_are_not_there(self, lengths: list[int], start: int, length: int) -> None:
        ends = list(itertools.accumulate(lengths, initial=90))
        said = timing(*(("AH", a, b) for a, b in itertools.pairwise(ends)))
        found = _fitted([said], word(start, start + length))
        if isinstance(found, str):
            assert length * min(lengths) <= sum(lengths)
        else:
            assert (found[0].start_ms, found[-1].end_ms) == (start, start + length)
            assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(found))
            assert all(phone.start_ms < phone.end_ms for phone in found)


class TestWhichWordIsWhich:
    def found(self, tmp_path: Path, main: str, wor: str) -> list[str | None]:
        """For each word of %wor what the item it is taken for says; None for none."""
        source = tmp_path / "a.cha"
        source.write_text(f"@Begin\n*CHI:\t{main}\n%wor:\t{wor}\n@End\n".replace("•", "\x15"))
        utterance = Document.parse(source.read_bytes()).utterances[0]
        items = [[types.WordTiming(text) for text in item.spoken] for item in utterance.items]
        timed = read(Job(source, source)).utterances[0]
        answers = _Answers({0: items}, {}).of(timed, utterance)
        return [None if isinstance(one, str) else " ".join(said.text for said in one) for one in answers]

    def test_it_is_the_item_that_is_written_so(self, tmp_path: Path) -> None:
        main = "&-um <I want> [/] I want xxx New_York (.) ice+cream . •0_900•"
        wor = "um •0_1• I want I •3_4• want New_York •5_6• icecream •7_8• ."
        assert self.found(tmp_path, main, wor) == ["um", "I", "want", "I", "want", "New York", "icecream"]

    def test_a_word_that_its_turn_no_longer_has_is_none(self, tmp_path: Path) -> None:
        assert self.found(tmp_path, "I see it . •0_900•", "I •0_1• saw •1_2• it •2_3• now •3_4• .") == [
            "I", None, "it", None,
        ]  # fmt: skip

    def test_why_a_turn_was_not_asked_for_goes_for_each_of_its_words(self, tmp_path: Path) -> None:
        source = tmp_path / "a.cha"
        source.write_text("@Begin\n*CHI:\txxx . \x150_900\x15\n%wor:\ta \x150_9\x15 b .\n@End\n")
        utterance = Document.parse(source.read_bytes()).utterances[0]
        timed = read(Job(source, source)).utterances[0]
        assert _Answers({}, {0: "late"}).of(timed, utterance) == ["late"] * 2
        assert _Answers({}, {}).of(timed, utterance) == ["its turn has no word to align"] * 2


class TestWhichModel:
    @pytest.mark.parametrize(
        ("rows", "wanted", "taken"),
        [
            (["*ctc", "able", "able too"], "", "able"),
            (["able", "*able too"], "", "able too"),
            (["*able", "able too"], "able too", "able too"),
            (["*ctc", "able"], "ctc", "model 'ctc' has no phones; sphinx-en-us has"),
            (["*ctc", "able"], "nope", "the server has no model 'nope'; it can serve ctc, able"),
            (["*ctc"], "", "none of the server's models has phones; sphinx-en-us has"),
        ],
    )
    async def test_the_one_that_is_named_or_the_first_that_can(self, rows: list[str], wanted: str, taken: str) -> None:
        async def models() -> list[Any]:
            return [
                SimpleNamespace(name=row.strip("*"), phones="able" in row, is_default=row.startswith("*"))
                for row in rows
            ]

        client: Any = SimpleNamespace(model=wanted, models=models)
        if taken.startswith("able"):
            assert await phonetic(client) == taken
        else:
            with pytest.raises(RequestRefused, match=taken):
                await phonetic(client)
