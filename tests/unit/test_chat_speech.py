"""How a written word is said."""

from __future__ import annotations

import pytest

from align_client.chat.speech import spoken_words


@pytest.mark.parametrize(
    ("written", "language", "said"),
    [
        ("hello", "eng", "hello"),
        ("New_York", "eng", "New York"),
        ("al-kitab", "ara", "al kitab"),
        ("th-", "eng", "th"),
        ("don’t", "eng", "don't"),  # noqa: RUF001  a smart apostrophe
        ("one.Do", "eng", "one Do"),
        ("cafe\u0301", "fra", "café"),
        ("42", "eng", "forty two"),
        ("42", "deu", "zweiundvierzig"),
        ("42", "spa", "cuarenta y dos"),
        ("1992", "eng", "nineteen ninety two"),
        ("1,205", "eng", "one thousand two hundred and five"),
        ("3.5", "eng", "three point five"),
        ("3:30", "eng", "three thirty"),
        ("3:05", "eng", "three oh five"),
        ("3:00", "eng", "three o'clock"),
        ("3:00", "deu", "drei"),
        ("21st", "eng", "twenty first"),
        ("50%", "eng", "fifty percent"),
        ("007", "eng", "zero zero seven"),
        ("5551234567", "eng", "five five five one two three four five six seven"),
        ("B2B", "eng", "B two B"),
        ("42", "zho", "42"),
        ("42", "", "42"),
        ("hao3", "zho", "hao3"),
        ("°", "eng", "°"),
    ],
)
def test_a_written_word_is_said(written: str, language: str, said: str) -> None:
    assert " ".join(spoken_words(written, language)) == said


def test_a_number_longer_than_python_reads_stays_as_written() -> None:
    written = ",".join(["123"] * 2000)
    assert spoken_words(written, "eng")
