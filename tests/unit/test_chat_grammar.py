"""Documents of a whole grammar of CHAT, sound and damaged; `make fuzz` does the same with many more."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align_client.chat import Document
from align_client.chat.marks import TOKEN
from chat_grammar import broken, long_turn, whole
from chat_invariants import check_any, check_whole

if TYPE_CHECKING:
    from random import Random

CHANCES = st.randoms(use_true_random=False)
some = settings(max_examples=70, deadline=5000, suppress_health_check=list(HealthCheck))


@some
@given(CHANCES)
def test_what_is_chat_is_understood_and_kept(chance: Random) -> None:
    check_whole(whole(chance), chance)


@some
@given(CHANCES)
def test_what_was_chat_is_refused_with_a_reason_or_kept(chance: Random) -> None:
    check_any(broken(chance), chance)


@settings(some, max_examples=20)
@given(CHANCES)
def test_a_turn_of_thousands_of_words_is_read_in_time(chance: Random) -> None:
    check_any(long_turn(chance), chance)


def test_the_grammar_reaches_every_kind_of_token() -> None:
    found = set()
    for seed in range(300):
        text = broken(random.Random(seed)).decode("utf-8", "replace")  # noqa: S311  no secret
        found |= {match.lastgroup for match in TOKEN.finditer(text)}
    # `times` and `language` stand within a code, and are never the last group of a match.
    assert found >= set(TOKEN.groupindex) - {"times", "language"}


def test_the_grammar_quotes_over_several_turns_of_one_speaker() -> None:
    found: Counter[str] = Counter()
    quoted = re.compile(r'(?:\[- \w+\]\s+)?\+"')
    for seed in range(200):
        text = whole(random.Random(seed)).data.decode()  # noqa: S311  no secret
        turns = re.findall(r"^\*(\w+):\s+((?:.*\n\t)*.*)", re.sub(r"\r\n?", "\n", text), re.MULTILINE)
        for (speaker, said), (following, then) in itertools.pairwise(turns):
            if speaker == following:
                found["follows"] += '+"/.' in said and quoted.match(then) is not None
                found["precedes"] += '+".' in then and quoted.match(said) is not None
    assert min(found["follows"], found["precedes"]) > 20


@pytest.mark.parametrize(("option", "is_ca"), [("CA", True), ("CA-Unicode", True), ("ca", True), ("caps", False)])
def test_ca_is_an_option_and_not_the_start_of_one(option: str, *, is_ca: bool) -> None:
    assert Document.parse(f"@Begin\n@Options:\tmulti, {option}\n".encode()).is_ca is is_ca
