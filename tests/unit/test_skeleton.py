"""A new CHAT file of what was heard."""

from __future__ import annotations

import pytest

from align_client.chat.document import Document
from align_client.chat.skeleton import skeleton
from align_client.heard import Heard


def said(text: str, start_ms: int = 0, each_ms: int = 400) -> list[Heard]:
    return [
        Heard(word, start_ms + i * each_ms, start_ms + (i + 1) * each_ms - 20) for i, word in enumerate(text.split())
    ]


def written(*pieces: list[Heard], language: str = "eng") -> list[str]:
    """The main tiers of the file, without their bullets."""
    data = skeleton(
        [word for piece in pieces for word in piece], media="talk", kind="audio", language=language, comment="none"
    )
    document = Document.parse(data)
    assert not any(utterance.problem for utterance in document.utterances)
    lines = data.decode().splitlines()
    return [line.partition("\t")[2].partition(" \x15")[0] for line in lines if line.startswith("*")]


def test_whole_file() -> None:
    data = skeleton(said("She came. Why?"), media="my talk", kind="video", language="eng", comment="by nobody")
    assert data.decode().splitlines() == [
        "@UTF8",
        "@Begin",
        "@Languages:\teng",
        "@Participants:\tPAR Participant",
        "@ID:\teng|corpus|PAR|||||Participant|||",
        '@Media:\t"my talk", video',
        "@Comment:\tby nobody",
        "*PAR:\tshe came . \x150_780\x15",
        "%wor:\tshe \x150_380\x15 came \x15400_780\x15 .",
        "*PAR:\twhy ? \x15800_1180\x15",
        "%wor:\twhy \x15800_1180\x15 ?",
        "@End",
    ]


def test_nothing_heard_is_still_a_file() -> None:
    data = skeleton([], media="talk", kind="audio", language="", comment="none")
    assert not Document.parse(data).utterances
    assert "@Languages:\tund" in data.decode()


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("Wait... Come!", ["wait +...", "come !"]),
        ("Mr. Smith saw J. R. Jones. Yes.", ["Mr Smith saw J R Jones .", "yes ."]),
        ('"Stop!" he said, (quietly).', ["stop !", "he said quietly ."]),
        ("I'm here. I am. It's Paris and Paris.", ["I'm here .", "I am .", "it's Paris and Paris ."]),
        ("Paris is big. We like Paris.", ["Paris is big .", "we like Paris ."]),
        ("In 2 days, 25 people.", ["in two days twenty five people ."]),
        ("NASA flew.", ["NASA flew ."]),
        ("well-known — and so on", ["well-known and so on ."]),
        ("3.", ["three ."]),
        ("&lt [x] <y> +z *w.", ["lt x y z w ."]),
        ("... ? .", []),
        ("Really?! No.", ["really ?", "no ."]),
    ],
)
def test_words_and_stops(heard: str, expected: list[str]) -> None:
    assert written(said(heard)) == expected


def test_pause_ends_an_utterance() -> None:
    assert written(said("one two"), said("three four", start_ms=3000)) == ["one two .", "three four ."]


def test_long_utterance_is_parted_at_its_longest_pause() -> None:
    lines = written(said("a b c d e f g h", each_ms=1500), said("i j k l m n o p", start_ms=13000, each_ms=1500))
    assert lines == ["a b c d e f g h .", "i j k l m n o p ."]


def test_a_number_shares_its_time_by_letters() -> None:
    data = skeleton([Heard("25", 0, 1000)], media="talk", kind="audio", language="eng", comment="none").decode()
    assert "%wor:\ttwenty \x150_600\x15 five \x15600_1000\x15 ." in data


def test_other_scripts_keep_their_words_and_get_terminators_of_chat() -> None:
    assert written(said("我 好 。 谁 ？"), language="zho") == ["我 好 .", "谁 ?"]  # noqa: RUF001  as it is written
