"""Documents made from a small grammar of CHAT keep every byte that alignment does not own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from align_client.chat import Bullet, Document, NotChatError, UtteranceTimes, WordTime

WORDS = st.sampled_from(
    ["hi", "(be)cause", "a::n", "°so°", "⌈2 x⌉2", "ice+cream", "a@l", "hola@s:spa", "New_York", "42", "&-um", "&~ba",
     "xxx", "&=laughs", "0it", "(.)", "(1.5)", ",", "‡", "[/]", "[: went]", "[*]", "[=! x y]", "[x 2]", "<", ">", "[>]",
     "“", "”", "&*INV:mhm", "\x151_2\x15", "été", "好", "[ bad", "bad ]", "/"]
)  # fmt: skip
GAPS = st.sampled_from([" ", "  ", "\n\t", " \n\t"])
ENDINGS = st.sampled_from(
    ["", " .", " ?", " +/.", " . [+ bch]", " . \x15100_200\x15", "\x15100_200\x15 ", ' .\n\t\x15%snd:"a b"_1_2\x15']
)
TIERS = st.sampled_from(
    ["%mor:\tx|y .", "%com:\ta\n\tb \x153_4\x15", "%wor:\thi \x151_2\x15 .", "%wor:\thi\n\tho .", "%x", "@T:\tc", ""]
)
HEADERS = st.sampled_from(
    ["@UTF8", "@Begin", "@Languages:\teng, spa", "@Options:\tCA", "@Media:\tx, audio", "@Odd thing:  y ", "junk", ""]
)


@st.composite
def turns(draw: st.DrawFn) -> str:
    words = draw(st.lists(WORDS, max_size=8))
    text = draw(st.sampled_from(["*CHI:\t", "*A_1: ", "*MOT:\t\t", "*who\t"]))
    text += "".join(word + draw(GAPS) for word in words) + draw(ENDINGS)
    return "\n".join([text, *draw(st.lists(TIERS, max_size=3))])


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    lines = ["@Begin", *draw(st.lists(HEADERS, max_size=4)), *draw(st.lists(turns(), max_size=5))]
    text = draw(st.sampled_from(["", "\ufeff"])) + "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n", "\r"]))).encode()


def times_for(document: Document, *, bullets: bool = True) -> dict[int, UtteranceTimes]:
    return {
        u.index: UtteranceTimes(
            Bullet(u.index, u.index + 7) if bullets else None,
            tuple(None if i % 3 == 2 else WordTime(i, i + 1) for i in range(len(u.items))),
        )
        for u in document.utterances
        if not u.problem
    }


@given(documents())
def test_without_times_every_byte_stays(data: bytes) -> None:
    assert Document.parse(data).with_times({}) == data


@given(documents())
def test_the_same_times_twice_are_a_fixed_point(data: bytes) -> None:
    document = Document.parse(data)
    times = times_for(document)
    once = document.with_times(times)
    again = Document.parse(once)
    assert again.with_times(times) == once
    assert [u.problem is None for u in again.utterances] == [u.problem is None for u in document.utterances]
    assert [[i.spoken for i in u.items] for u in again.utterances] == [
        [i.spoken for i in u.items] for u in document.utterances
    ]


@given(documents())
def test_every_utterance_ends_with_the_bullet_it_was_given(data: bytes) -> None:
    document = Document.parse(data)
    times = times_for(document)
    for utterance in Document.parse(document.with_times(times)).utterances:
        if utterance.index in times:
            assert utterance.bullet == times[utterance.index].bullet


@given(documents())
def test_only_wor_lines_change_where_no_bullet_is_given(data: bytes) -> None:
    document = Document.parse(data)
    result = document.with_times(times_for(document, bullets=False)).decode()
    assert _without_wor(result) == _without_wor(data.decode())


@given(documents(), st.data())
def test_utterances_that_got_no_times_keep_every_byte(data: bytes, choice: st.DataObject) -> None:
    document = Document.parse(data)
    times = times_for(document)
    if not times:
        return
    chosen = choice.draw(st.sampled_from(sorted(times)))
    result = document.with_times({chosen: times[chosen]}).decode()
    line = document.utterances[chosen].line
    newline = "\r" if b"\n" not in data else "\n"
    assert result.split(newline)[: line - 1] == data.decode().split(newline)[: line - 1]
    following = [u.line for u in document.utterances if u.line > line]
    if following:
        tail = newline.join(data.decode().split(newline)[following[0] - 1 :])
        assert result.endswith(tail)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        document = Document.parse(data)
    except NotChatError:
        return
    assert document.with_times({}) == data


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_in_a_turn_is_read(text: str) -> None:
    data = f"@Begin\n*CHI:\t{text}\n".encode()
    document = Document.parse(data)
    assert document.with_times({}) == data
    once = document.with_times(times_for(document))
    assert Document.parse(once).with_times(times_for(document)) == once


def _without_wor(text: str) -> list[str]:
    """The lines without %wor tiers and their continuations, line ends taken off."""
    kept: list[str] = []
    in_wor = False
    for line in text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n"):
        in_wor = line.startswith("%wor:") or (in_wor and line[:1] in {"\t", " "} and bool(line.strip()))
        if not in_wor:
            kept.append(line)
    return kept
