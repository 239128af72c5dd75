"""From words to the tokens of a Whisper model, and the tokens that come before and after them.

Knows the tokenizer's files and languages; knows nothing of audio. A tokenizer's own code is not run.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from align_server.engines.engine import EngineLoadError
from align_server.engines.files import read_json
from align_server.engines.whisper.languages import UNSPACED, code, language

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEGIN: Final = "<|startoftranscript|>"
TRANSCRIBE: Final = "<|transcribe|>"
NO_TIMES: Final = "<|notimestamps|>"
END: Final = "<|endoftext|>"
# Stands for an unknown sound. With one word of each of 38 sentences unknown, its neighbours' edges move by 55 ms in the
# mean; by 198 ms with nothing there, and by 59 to 120 ms with an ellipsis, a dash, "um" or "[inaudible]".
SLOT: Final = "..."
NOT_SPEECH: Final = ("<|nospeech|>", "<|nocaptions|>")  # OpenAI's name, and that of older folders of transformers
# What transcripts have that is not said, as openai-whisper lists it; of notes of music the first token is enough.
MARKS: Final = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"),
    *("♪♪", "♪♪♪"),
)
NOTES: Final = "♩♪♫♬♭♮♯"
DASH_OR_QUOTE: Final = (" -", " '")
SAID: Final = frozenset("&%@#")  # punctuation to Unicode, and words by themselves
UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Byte-level BPE, which can spell any text, and the model's special tokens. Safe to use from several threads.

    `special` is empty of languages where the model knows English alone.
    """

    bpe: tokenizers.Tokenizer
    special: dict[str, int]
    multilingual: bool

    @classmethod
    def read(cls, folder: Path, size: int, *, multilingual: bool) -> Tokenizer:
        """Read tokenizer.json, or vocab.json, merges.txt and added_tokens.json, of a model with `size` tokens.

        Raises EngineLoadError.
        """
        vocabulary, merges, special = _whole(folder) if (folder / "tokenizer.json").is_file() else _parts(folder)
        needed = [BEGIN, END, NO_TIMES, *((TRANSCRIBE, "<|en|>") if multilingual else ())]
        if missing := [token for token in needed if token not in special]:
            raise EngineLoadError(
                f"the tokenizer in {folder} lacks {', '.join(missing)}, which Whisper needs; copy the model's own"
            )
        if (most := max(*vocabulary.values(), *(special[token] for token in needed))) >= size:
            raise EngineLoadError(
                f"the tokenizer in {folder} has token {most}, but the model only {size}; copy the model's own"
            )
        try:
            bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # the class that tokenizers raises
            raise EngineLoadError(
                f"the merges of the tokenizer in {folder} do not fit its vocabulary ({error})"
            ) from error
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return cls(bpe, {token: i for token, i in special.items() if i < size}, multilingual)

    @property
    def end(self) -> int:
        """The token after the last word; tokens below it are text."""
        return self.special[END]

    def knows(self, language: str) -> bool:
        """Whether the model has that ISO 639-3 language; the empty one stands for its first."""
        if not language or not self.multilingual:
            return language in {"", "eng"}
        return f"<|{code(language)}|>" in self.special

    def prompt(self, language: str) -> list[int]:
        """The tokens before the words of a segment in that ISO 639-3 language, which the model knows."""
        if not self.multilingual:
            return [self.special[BEGIN], self.special[NO_TIMES]]
        spoken = f"<|{code(language or 'eng')}|>"
        return [self.special[token] for token in (BEGIN, spoken, TRANSCRIBE, NO_TIMES)]

    def spell(self, word: str, language: str, before: str | None) -> list[int]:
        """The tokens of a word after one in the language `before`, None at the start; none where it has no text.

        A space is part of the word after it, and stands before the first word too; between words of languages that
        are written without spaces, and before the first of them, there is none.
        """
        text = word.strip()
        joined = language in UNSPACED and (before is None or before in UNSPACED)
        encode: Any = self.bpe.encode  # has types that mypy does not follow
        tokens: list[int] = encode(text if joined else f" {text}").ids if text else []
        return tokens

    @property
    def first_time(self) -> int:
        """The token of 0.00 s, after which come those of each 20 ms; a model may end before it."""
        return self.special[NO_TIMES] + 1

    @property
    def spoken(self) -> dict[int, str]:
        """The languages that the model can tell apart, ISO 639-3 by token; empty where it knows English alone."""
        found = ((i, language(token[2:-2])) for token, i in self.special.items()) if self.multilingual else ()
        return {i: name for i, name in found if name is not None}

    @property
    def not_speech(self) -> int | None:
        """The token that says that nothing is said, where there is one."""
        return next((self.special[token] for token in NOT_SPEECH if token in self.special), None)

    def marks(self) -> tuple[int, ...]:
        """The tokens of MARKS and NOTES, and what is no text but the end."""
        space = self._ids(" ")
        found = {self.special[token] for token in self.special if token != END}
        for mark in (*MARKS, *NOTES):
            for tokens in (self._ids(mark), self._ids(f" {mark}")):
                if (len(tokens) == 1 or mark in NOTES) and tokens[:1] != space:
                    found.add(tokens[0])
        found.update(tokens[0] for tokens in map(self._ids, DASH_OR_QUOTE) if tokens[:1] != space)
        return tuple(sorted(found))

    def blank(self) -> tuple[int, ...]:
        """The tokens that no text starts with: a space, and the end."""
        return (*self._ids(" "), self.end)

    def _ids(self, text: str) -> list[int]:
        encode: Any = self.bpe.encode  # see spell
        tokens: list[int] = encode(text).ids
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens of text spell, with UNFINISHED for bytes that are no whole character."""
        decode: Any = decoders.ByteLevel().decode
        spelled: str = decode([self.bpe.id_to_token(token) or "" for token in tokens])
        return spelled

    def words(self, tokens: Sequence[int], language: str) -> tuple[list[str], list[int]]:
        """The words that tokens of text make, and the number of the word that each token is of.

        Words begin at spaces, or where the language has none, at each token that begins a character. Punctuation
        is of the word before it; what opens, after a space or a bracket, of the word after it. No words where no
        token has more than punctuation.
        """
        pieces: list[tuple[str, int]] = []  # text, and how many tokens it has
        held: list[int] = []
        for token in tokens:
            held.append(token)
            text = self.text(held)
            if UNFINISHED not in text:
                pieces.append((text, len(held)))
                held = []
        if held:
            pieces.append((self.text(held).replace(UNFINISHED, ""), len(held)))
        return _grouped(pieces, spaced=language not in UNSPACED)


def _grouped(pieces: list[tuple[str, int]], *, spaced: bool) -> tuple[list[str], list[int]]:
    words: list[str] = []
    owners: list[int] = []
    opening, waiting = "", 0  # what the next word starts with, and how many tokens that has
    for piece, count in pieces:
        text = piece.strip()
        begins = not words or not spaced or piece[:1].isspace()
        if not all(letter not in SAID and unicodedata.category(letter)[0] in "PZC" for letter in text):
            if begins or waiting:
                words.append(opening + text)
            else:
                words[-1] += text
            owners += [len(words) - 1] * (waiting + count)
            opening, waiting = "", 0
        elif waiting or not words or (begins and _opens(text, spaced=spaced)):
            opening, waiting = opening + (text if _opens(text, spaced=True) else ""), waiting + count
        else:
            words[-1] += text
            owners += [len(words) - 1] * count
    if not words:
        return [], []
    words[-1] += opening
    return words, owners + [len(words) - 1] * waiting


def _opens(text: str, *, spaced: bool) -> bool:
    kinds = {unicodedata.category(letter) for letter in text}
    return bool(text) and (kinds <= {"Ps", "Pi"} or text in {"¿", "¡"} or (spaced and text in {'"', "'", "-"}))


def _whole(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges and special tokens of a tokenizer.json. Raises EngineLoadError."""
    path = folder / "tokenizer.json"
    value = read_json(path)
    try:
        model = value["model"]
        if model["type"] != "BPE":
            raise EngineLoadError(f"{path} is a {model['type']} tokenizer; Whisper's is BPE: copy the model's own")
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merges = [(left, right) for left, right in pairs]
        special = {token["content"]: int(token["id"]) for token in value["added_tokens"]}
        return _text(model["vocab"], special), merges, special
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineLoadError(
            f"{path} is not a tokenizer that transformers wrote ({error!r}); copy it again"
        ) from error


def _parts(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """The same of vocab.json, merges.txt and added_tokens.json. Raises EngineLoadError."""
    without = "without it, or a tokenizer.json, words have no tokens; copy the tokenizer into the folder"
    found = read_json(folder / "vocab.json", without)
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise EngineLoadError(f"{folder} has no {path.name}: {without}") from error
    except (OSError, ValueError) as error:
        raise EngineLoadError(f"{path} cannot be read ({error}); copy it again") from error
    pairs = (line.split(" ") for line in lines if not line.startswith("#version"))
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    special = {key: i for key, i in found.items() if key.startswith("<|")} | read_json(folder / "added_tokens.json")
    return _text(found, special), merges, special


def _text(vocabulary: dict[str, int], special: dict[str, int]) -> dict[str, int]:
    return {token: i for token, i in vocabulary.items() if token not in special}
