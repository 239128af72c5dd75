"""From words to the tokens of a CTC vocabulary.

Knows the tokenizer's files, Unicode and letters; knows nothing of audio. A tokenizer's own code is not run.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.engine import EngineLoadError
from align_server.engines.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

APOSTROPHES: Final = "'\u2019\u2018\u02bc\uff07"  # straight, right and left quote, letter, full width
_DROPPED: Final = frozenset({"Cf", "Sk", "Sm"})  # besides punctuation and spaces: invisible, accents alone, + and |
_DEFAULTS: Final = {  # Wav2Vec2CTCTokenizer's
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "word_delimiter_token": "|",
}


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The letters that a model can say, each with its token.

    `blank` is CTC's blank token; `delimiter` stands between words, None where the model has no such token.
    Safe to use from several threads; how a character is spelled is remembered.
    """

    letters: dict[str, int]
    blank: int
    delimiter: int | None
    _spelled: dict[str, tuple[int, ...] | None] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, size: int) -> Vocabulary:
        """Read the tokenizer of the checkpoint in `folder`, whose model has `size` tokens. Raises EngineLoadError.

        Whether words are put in capitals is decided by the letters that are there: the tokenizer's own
        `do_lower_case` does the opposite of what it says in transformers.
        """
        path = folder / "vocab.json"
        found = read_vocabulary(folder) | read_json(folder / "added_tokens.json")
        if any(isinstance(value, dict) for value in found.values()):
            raise EngineLoadError(
                f"{path} holds vocabularies of several languages ({', '.join(list(found)[:5])}, ...), and config.json "
                "no adapter_attn_dim; load one of them in transformers with target_lang, and save the model and its "
                "tokenizer"
            )
        return cls.of(found, size, special_tokens(folder), str(path))

    @classmethod
    def of(cls, found: Mapping[str, Any], size: int, special: Mapping[str, str], where: str) -> Vocabulary:
        """The vocabulary of a model of `size` tokens, of what `where` holds: tokens by their texts.

        `special` is what `special_tokens` gives. Raises EngineLoadError.
        """
        tokens = {text: token for text, token in found.items() if isinstance(token, int) and 0 <= token < size}
        if special["pad_token"] not in tokens:
            raise EngineLoadError(
                f"{where} lacks {special['pad_token']!r}, the blank token of CTC, among the model's {size} tokens; "
                "name the right one as pad_token in tokenizer_config.json"
            )
        others = {tokens[name] for name in special.values() if name in tokens}
        letters = {
            normal: token
            for text, token in tokens.items()
            if token not in others and len(normal := unicodedata.normalize("NFC", text)) == 1
        }
        if not any(letter.isalpha() for letter in letters):
            raise EngineLoadError(f"{where} has no single letters; only models that spell in letters can be served")
        return cls(letters, tokens[special["pad_token"]], tokens.get(special["word_delimiter_token"]))

    def spell(self, word: str) -> tuple[list[int], str]:
        """The tokens of a word, and its characters that the model cannot say.

        A character is tried in the vocabulary's case, as it is, in the other case, and without accents; curly and
        straight apostrophes are one. Punctuation, spaces and marks that the vocabulary lacks are left out.
        """
        tokens: list[int] = []
        unknown = ""
        for character in unicodedata.normalize("NFC", word):
            if character not in self._spelled:
                self._spelled[character] = self._spell(character)
            spelled = self._spelled[character]
            if spelled is None:
                unknown += character
            else:
                tokens += spelled
        return tokens, unknown

    def _spell(self, character: str) -> tuple[int, ...] | None:
        for form in self._forms(character):
            if all(letter in self.letters for letter in form):
                return tuple(self.letters[letter] for letter in form)
        category = unicodedata.category(character)
        return () if category[0] in "PZ" or category in _DROPPED else None

    def _forms(self, character: str) -> Iterator[str]:
        """What may stand for a character, best first."""
        if character in APOSTROPHES:
            yield from (character, *APOSTROPHES)
            return
        upper = sum(letter.isupper() for letter in self.letters)
        lower = sum(letter.islower() for letter in self.letters)
        cased = (character.lower(), character, character.upper(), character.casefold())
        if upper > 2 * lower:  # a stray capital among small letters is no rule
            cased = (character.upper(), character, character.lower(), character.casefold())
        elif lower <= 2 * upper:
            cased = (character, character.lower(), character.upper(), character.casefold())
        yield from cased
        yield from (unicodedata.normalize("NFD", form) for form in cased)
        for form in cased:
            parts = unicodedata.normalize("NFKD", form)
            if plain := "".join(part for part in parts if not unicodedata.combining(part)):
                yield plain
        if unicodedata.combining(character):
            yield ""


def read_vocabulary(folder: Path) -> dict[str, Any]:
    """What vocab.json holds: each token by its text, or where there are several languages, such a dict for each.

    Raises EngineLoadError.
    """
    return read_json(
        folder / "vocab.json", "a checkpoint without its tokenizer cannot spell words; save both in the folder"
    )


def special_tokens(folder: Path) -> dict[str, str]:
    """The texts of the special tokens, by their names in a tokenizer's settings. Raises EngineLoadError."""
    settings = read_json(folder / "tokenizer_config.json")
    if "Phoneme" in str(settings.get("tokenizer_class")):
        raise EngineLoadError(f"{folder} spells in phonemes; only models that spell in letters can be served")
    return _DEFAULTS | _special(settings) | _special(read_json(folder / "special_tokens_map.json"))


def _special(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer's file names, as text."""
    named = {key: settings[key] for key in _DEFAULTS if settings.get(key)}
    return {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
