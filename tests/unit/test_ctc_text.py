"""Words become the tokens of whatever vocabulary a checkpoint has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from align_server.engines.ctc.text import Vocabulary
from align_server.engines.engine import EngineLoadError
from checkpoints import LETTERS, write_json

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ("<pad>", "<unk>", "|")


def read(folder: Path, vocabulary: str = "", /, **settings: object) -> Vocabulary:
    tokens = [*SPECIAL, *vocabulary] if vocabulary else [*LETTERS]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    write_json(folder / "tokenizer_config.json", settings)
    return Vocabulary.read(folder, len(tokens))


def said(vocabulary: Vocabulary, word: str) -> str:
    """A word as it is spelled in letters of the vocabulary; what cannot be said in brackets."""
    names = {token: letter for letter, token in vocabulary.letters.items()}
    tokens, unknown = vocabulary.spell(word)
    return "".join(names[token] for token in tokens) + (f"[{unknown}]" if unknown else "")


def test_the_blank_is_the_padding_token_and_words_have_a_delimiter(tmp_path: Path) -> None:
    vocabulary = read(tmp_path)
    assert (vocabulary.blank, vocabulary.delimiter) == (0, 4)


@pytest.mark.parametrize("as_object", [False, True])
def test_the_special_tokens_may_have_other_names(tmp_path: Path, *, as_object: bool) -> None:
    write_json(tmp_path / "vocab.json", {"a": 0, "-": 1, "_": 2, "*": 3})
    pad = {"content": "-"} if as_object else "-"
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": pad, "unk_token": "*"})
    write_json(tmp_path / "tokenizer_config.json", {"word_delimiter_token": "_"})
    vocabulary = Vocabulary.read(tmp_path, 4)
    assert (vocabulary.blank, vocabulary.delimiter, vocabulary.letters) == (1, 2, {"a": 0})


def test_a_vocabulary_without_delimiter_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"<pad>": 0, "a": 1})
    assert Vocabulary.read(tmp_path, 2).delimiter is None


@pytest.mark.parametrize(
    ("letters", "word", "spelled"),
    [
        ("ABC", "Cab", "CAB"),
        ("abc", "Cab", "cab"),
        ("abcdefgC", "Cab", "cab"),  # a stray capital is no rule
        ("abcABC", "Cab", "Cab"),
        ("abC", "cab", "Cab"),  # the letter is there in the other case alone
        ("STRAE", "straße", "STRASSE"),
        ("straße", "STRAßE", "straße"),
        ("strae", "straße", "strasse"),
        ("abc", "a-b_c!", "abc"),
        ("abc-", "a-b", "a-b"),
        ("abc", "a+b|c", "abc"),
        ("abc", "a\u00adb\u200dc", "abc"),
        ("it's", "it\u2019s", "it's"),
        ("it\u2019s", "it's", "it\u2019s"),
        ("its", "it's", "its"),
        ("cafe", "caf\u00e9", "cafe"),
        ("caf\u00e9", "cafe\u0301", "caf\u00e9"),
        ("cafe\u0301", "caf\u00e9", "cafe\u0301"),
        ("istanbul", "\u0130stanbul", "istanbul"),
        ("\u4f60\u597d", "\u4f60\u597d", "\u4f60\u597d"),
        ("abc", "ab7", "ab[7]"),
        ("abc", "\u0436b", "b[\u0436]"),
        ("abc", "...", ""),
        ("abc", "", ""),
    ],
)
def test_a_word_is_spelled_in_the_letters_that_are_there(tmp_path: Path, letters: str, word: str, spelled: str) -> None:
    assert said(read(tmp_path, letters), word) == spelled


def test_characters_of_special_tokens_are_never_targets(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"-": 0, "a": 1, "b": 2, "|": 3, "x": 4})
    write_json(tmp_path / "tokenizer_config.json", {"pad_token": "-", "unk_token": "x"})
    vocabulary = Vocabulary.read(tmp_path, 5)
    assert vocabulary.spell("a-b|") == ([1, 2], "")
    assert vocabulary.spell("axb") == ([1, 2], "x")


def test_tokens_that_the_model_does_not_have_are_never_targets(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"<pad>": 0, "a": 1, "b": 2})
    assert Vocabulary.read(tmp_path, 2).spell("ab") == ([1], "b")


def test_tokens_may_have_been_added_later(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"a": 0, "b": 1})
    write_json(tmp_path / "added_tokens.json", {"[PAD]": 2})
    write_json(tmp_path / "tokenizer_config.json", {"pad_token": "[PAD]"})
    assert Vocabulary.read(tmp_path, 3).blank == 2


@pytest.mark.parametrize(
    ("vocabulary", "settings", "message"),
    [
        ({"a": 0}, {}, "lacks '<pad>', the blank token of CTC"),
        ({"<pad>": 7, "a": 0}, {}, "among the model's 3 tokens"),
        ({"<pad>": 0, "ab": 1}, {}, "has no single letters"),
        ({"eng": {"<pad>": 0, "a": 1}}, {}, "vocabularies of several languages"),
        ({"<pad>": 0, "a": 1}, {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "spells in phonemes"),
    ],
)
def test_a_vocabulary_that_cannot_spell_is_refused(
    tmp_path: Path, vocabulary: dict[str, object], settings: dict[str, object], message: str
) -> None:
    write_json(tmp_path / "vocab.json", vocabulary)
    write_json(tmp_path / "tokenizer_config.json", settings)
    with pytest.raises(EngineLoadError, match=message):
        Vocabulary.read(tmp_path, 3)


def test_a_checkpoint_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"has no vocab\.json.*save both in the folder"):
        Vocabulary.read(tmp_path, 3)
