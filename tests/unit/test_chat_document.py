"""A CHAT file keeps its bytes; only time bullets and %wor lines may change."""

from __future__ import annotations

import pytest

from align_client.chat import Bullet, Document, Media, NotChatError, Utterance, UtteranceTimes, WordTime, WorWord

HEAD = "@UTF8\n@Begin\n@Languages:\teng\n"


def parse(text: str) -> Document:
    return Document.parse(text.encode())


def times_for(utterance: Utterance, bullet: Bullet | None = None) -> UtteranceTimes:
    """Ten milliseconds for each item, from 1000 ms on."""
    words = tuple(WordTime(1000 + 10 * i, 1010 + 10 * i) for i in range(len(utterance.items)))
    return UtteranceTimes(bullet, words)


def aligned(text: str, bullet: Bullet | None = None, *, wor: bool = True) -> str:
    """The file after every utterance that was understood got times."""
    document = parse(text)
    times = {u.index: times_for(u, bullet) for u in document.utterances if not u.problem}
    return document.with_times(times, wor=wor).decode()


def test_without_times_every_byte_stays() -> None:
    data = b"\xef\xbb\xbf@UTF8\r\n@Begin\n@Odd header\n\n%lost:\tx\n*CHI:  hi\t.  \r\n\tthere \x15junk\x15 .\nplain"
    assert Document.parse(data).with_times({}) == data


def test_a_bullet_and_a_wor_tier_are_added() -> None:
    assert aligned(HEAD + "*CHI:\thi xxx you_know . [+ x]  \n@End\n", Bullet(5, 9)) == (
        HEAD + "*CHI:\thi xxx you_know . [+ x] \x155_9\x15  \n"
        "%wor:\thi \x151000_1010\x15 you_know \x151020_1030\x15 .\n@End\n"
    )


def test_a_bullet_is_replaced_where_it_stands() -> None:
    body = "*CHI:\ta \x151_2\x15 b . \x153_4\x15 [+ x]\n"
    assert aligned(HEAD + body, Bullet(5, 9), wor=False) == HEAD + body.replace("3_4", "5_9")


@pytest.mark.parametrize("bullet", ['\x15%snd:"my film.mov"_{}\x15', "\x15{}-\x15", "\x15{}\x15"])
def test_old_forms_of_a_bullet_keep_their_form(bullet: str) -> None:
    text = HEAD + "*CHI:\thi .\n\t" + bullet + "\n"
    assert parse(text.format("10_20")).utterances[0].bullet == Bullet(10, 20)
    assert aligned(text.format("10_20"), Bullet(5, 9), wor=False) == text.format("5_9")


def test_a_bullet_that_words_follow_is_not_the_ending_one() -> None:
    (utterance,) = parse(HEAD + "*CHI:\ta \x151_2\x15 b .\n").utterances
    assert (utterance.bullet, utterance.span) == (None, Bullet(1, 2))
    assert aligned(HEAD + "*CHI:\ta \x151_2\x15 b .\n", Bullet(5, 9), wor=False).endswith(
        "\x151_2\x15 b . \x155_9\x15\n"
    )


def test_a_bullet_that_no_word_follows_is_the_ending_one() -> None:
    text = HEAD + "*CHI:\ta . \x151_2\x15\n\t(2.0) ((coughs))\n"
    assert parse(text).utterances[0].bullet == Bullet(1, 2)
    assert aligned(text, Bullet(5, 9), wor=False) == text.replace("1_2", "5_9")


def test_the_span_of_a_turn_reaches_over_all_its_bullets() -> None:
    (utterance,) = parse(HEAD + "*CHI:\ta . \x151_2\x15\n\t(2.0) \x153_9\x15\n").utterances
    assert (utterance.bullet, utterance.span) == (Bullet(3, 9), Bullet(1, 9))


def test_an_old_wor_tier_is_replaced_where_it_stands() -> None:
    text = HEAD + "*CHI:\thi you .\n%mor:\tx\n%wor:\thi \x151_2\x15\n\tyou .\n%com:\ty\n"
    assert aligned(text) == (
        HEAD + "*CHI:\thi you .\n%mor:\tx\n%wor:\thi \x151000_1010\x15 you \x151010_1020\x15 .\n%com:\ty\n"
    )


def test_a_new_wor_tier_follows_the_other_dependent_tiers() -> None:
    text = HEAD + "*CHI:\thi .\n%mor:\tx\n%com:\ty\n\tz\n@Comment:\tw\n"
    assert aligned(text) == text.replace("z\n", "z\n%wor:\thi \x151000_1010\x15 .\n")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_wor_tier_has_the_line_end_of_its_neighbours(newline: str) -> None:
    text = (HEAD + "*CHI:\thi .\n%com:\tx\n*CHI:\tho .").replace("\n", newline)
    expected = HEAD + "*CHI:\thi .\n%com:\tx\n%wor:\thi \x151000_1010\x15 .\n*CHI:\tho .\n%wor:\tho \x151000_1010\x15 ."
    assert aligned(text) == expected.replace("\n", newline)


def test_mixed_line_ends_stay_mixed() -> None:
    text = "@UTF8\r\n*CHI:\thi .\n*CHI:\tho .\r\n@End\n"
    assert aligned(text) == (
        "@UTF8\r\n*CHI:\thi .\n%wor:\thi \x151000_1010\x15 .\n*CHI:\tho .\r\n%wor:\tho \x151000_1010\x15 .\r\n@End\n"
    )


def test_a_word_without_a_time_is_written_without_one() -> None:
    document = parse(HEAD + "*CHI:\tone two +/.\n")
    times = {0: UtteranceTimes(None, (None, WordTime(3, 4)))}
    assert document.with_times(times).decode().endswith("%wor:\tone two \x153_4\x15 +/.\n")


@pytest.mark.parametrize(
    "text",
    [
        "@Options:\tCA\n*CHI:\thi .\n",
        "@Options:\theritage, CA-Unicode\n*CHI:\thi .\n%wor:\told .\n",
        "*CHI:\txxx &=laughs .\n%wor:\told .\n",
        "*CHI:\t.\n",
    ],
)
def test_no_wor_tier_in_ca_or_without_words(text: str) -> None:
    assert aligned(HEAD + text) == HEAD + text


def test_where_no_word_was_timed_an_old_wor_tier_is_kept() -> None:
    text = HEAD + "*CHI:\thi .\n%wor:\thi \x151_2\x15 .\n*CHI:\tho .\n"
    document = parse(text)
    assert document.with_times({i: UtteranceTimes(None, (None,)) for i in (0, 1)}) == text.encode()


def test_an_old_wor_tier_is_read() -> None:
    text = HEAD + "*CHI:\t[- spa] hi you there .\n%wor:\t[- spa] hi \x151_2\x15 you\n\tthere \x153_4\x15 .\n"
    assert parse(text).utterances[0].wor == (
        WorWord("hi", WordTime(1, 2)),
        WorWord("you", None),
        WorWord("there", WordTime(3, 4)),
        WorWord(".", None),
    )


def test_what_one_line_makes_unintelligible_costs_that_utterance_alone() -> None:
    text = HEAD + "*CHI:\thi .\n*CHI:\twhat [= is .\n*CHI:\tho .\n"
    document = parse(text)
    assert [bool(u.problem) for u in document.utterances] == [False, True, False]
    assert document.problems == (document.utterances[1].problem,)
    result = aligned(text, Bullet(1, 2))
    assert "*CHI:\twhat [= is .\n*CHI:" in result
    assert result.count("%wor") == 2


def test_a_line_that_belongs_to_nothing_is_a_problem_of_the_turn_it_may_continue() -> None:
    document = parse(HEAD + "*CHI:\thi .\nand more\n*CHI:\tho .\n%com:\tx\nodd\n")
    assert [(p.line, p.column) for p in document.problems] == [(5, 1), (8, 1)]
    assert [bool(u.problem) for u in document.utterances] == [True, False]


def test_a_turn_without_a_speaker_is_a_problem() -> None:
    (utterance,) = parse(HEAD + "*what is this\n").utterances
    assert utterance.problem
    assert "names no speaker" in utterance.problem.message


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({7: UtteranceTimes(None, ())}, "no utterance 7"),
        ({-1: UtteranceTimes(None, ())}, "no utterance -1"),
        ({0: UtteranceTimes(None, ())}, "has 1 items, not 0"),
        ({0: UtteranceTimes(Bullet(9, 5), (None,))}, "9 to 5 ms"),
        ({0: UtteranceTimes(None, (WordTime(-1, 5),))}, "-1 to 5 ms"),
        ({1: UtteranceTimes(None, ())}, "has a problem"),
    ],
)
def test_times_that_are_not_the_utterances_are_refused(times: dict[int, UtteranceTimes], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(HEAD + "*CHI:\thi .\n*CHI:\t[ .\n").with_times(times)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("talk, audio", Media("talk", "audio", ())),
        ("talk.mp4, video, unlinked", Media("talk.mp4", "video", ("unlinked",))),
        ("a b, c, audio, notrans", Media("a b, c", "audio", ("notrans",))),
        ('"https://x.org/a.mp3", audio, missing', Media("https://x.org/a.mp3", "audio", ("missing",))),
        ("趙(1).x, audio", Media("趙(1).x", "audio", ())),
        ("talk, missing", Media("talk", "missing", ("missing",))),
        ("talk,\n\tAudio", Media("talk", "audio", ())),
        ("talk", Media("talk", "", ())),
        ("talk, audio\n\t((Music)) \x150_10\x15", Media("talk", "audio", ())),
    ],
)
def test_media_headers(value: str, expected: Media) -> None:
    assert parse(f"{HEAD}@Media:\t{value}\n").media == expected


def test_headers_are_found_before_begin_and_without_utf8() -> None:
    document = parse("@PID:\tx\n@Font:\tCAfont\n@Begin\n@Languages:  eng , spa,CA\n@Options:\t\tCA, heritage \n@Odd\n")
    assert (document.languages, document.options, document.is_ca) == (("eng", "spa"), ("CA", "heritage"), True)
    assert document.media is None


@pytest.mark.parametrize("speaker", ["*CHI:\t", "*CHI: \t", "*CHI:   ", "*F_A_T:\t", "*206:\t", "*CHI :\t"])
def test_speakers_are_read_however_they_are_spaced(speaker: str) -> None:
    (utterance,) = parse(speaker + "hi .\n").utterances
    assert (utterance.speaker, utterance.problem) == (speaker[1:4].strip() if "_" not in speaker else "F_A_T", None)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"hello\nworld\n", "line 1 is .hello."),
        (b"\x89PNG\r\n\x1a\n", "byte 0x89 at line 1, column 1"),
        ("@UTF8\n*CHI:\tcafé .\n".encode("latin-1"), r"byte 0xe9 at line 2, column 10 \(byte 15\)"),
        ("@UTF8\n@Begin\n".encode("utf-16"), "UTF-16"),
        ("@UTF8\n@Begin\n".encode("utf-16-le"), "UTF-16"),
        (b"%mor:\tx\n", "not a CHAT file"),
    ],
)
def test_what_is_not_chat_is_refused_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(NotChatError, match=says):
        Document.parse(data)


def test_a_very_long_line_and_a_very_large_number_are_survived() -> None:
    long = "word " * 20_000
    document = parse(f"{HEAD}*CHI:\t{long}.\n*CHI:\thi . \x15{'9' * 5000}_1\x15\n")
    assert len(document.utterances[0].items) == 20_000
    assert document.utterances[1].problem is not None


def test_composed_and_decomposed_text_stay_as_they_are() -> None:
    text = HEAD + "*CHI:\tcafe\u0301 caf\u00e9 .\n"
    document = parse(text)
    assert [item.spoken for item in document.utterances[0].items] == [("caf\u00e9",), ("caf\u00e9",)]
    assert aligned(text).startswith(text)
    assert "cafe\u0301 \x15" in aligned(text)
