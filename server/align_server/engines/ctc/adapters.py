"""For which languages a checkpoint such as `facebook/mms-1b-all` has adapters, and by which names users know them.

Reads a folder's small files; imports neither torch nor transformers, so that listing is quick. The layout is that of
transformers: an adapter of each language in a file of its own, and the vocabularies of all in one vocab.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from align_server.engines.ctc.text import read_vocabulary
from align_server.engines.engine import EngineLoadError
from align_server.engines.files import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

HELD: Final = 8  # languages whose adapters are in memory: those used last
DEFAULT: Final = "eng"  # the language of words that name none, where there is an adapter for it
# What MMS calls languages that a transcript may name by the ISO 639-3 code of the macrolanguage.
MEMBERS: Final = {
    "aze": "azj",
    "kur": "kmr",
    "msa": "zlm",
    "nep": "npi",
    "nor": "nob",
    "ori": "ory",
    "swa": "swh",
    "yid": "ydd",
    "zho": "cmn",
}


@dataclass(frozen=True, slots=True, eq=False)
class Adapters:
    """The languages that have both an adapter and a vocabulary in `folder`.

    `vocabularies` has the tokens of each by the name in its file's name, the default first: an ISO 639-3 code, where
    needed with what tells scripts or dialects apart, as in uzb-script_latin. `by_code` has the names of each code.
    """

    folder: Path
    vocabularies: Mapping[str, Mapping[str, Any]]
    by_code: Mapping[str, tuple[str, ...]]

    @classmethod
    def find(cls, folder: Path, config: Mapping[str, Any], languages: Sequence[str] = ()) -> Adapters | None:
        """Those of the checkpoint with that config.json, None where it is of one language. Raises EngineLoadError.

        Where `languages` are named, only theirs: see `adapter_files`.
        """
        found = _vocabularies(folder, config)
        if not found:
            return None
        mine = {_named(language, found, str(folder)) for language in languages} or found
        names = [name for name in sorted(mine) if _file(folder, name).is_file()]
        if not names:
            raise EngineLoadError(
                f"{folder} has no adapter of any language in its vocab.json ({', '.join(sorted(found)[:5])}, ...); "
                f"copy or download those that you need, such as {_file(folder, min(found)).name}, into the folder"
            )
        first = (DEFAULT, read_json(folder / "tokenizer_config.json").get("target_lang"), config.get("target_lang"))
        default = next((name for name in first if name in names), names[0])
        names.sort(key=lambda name: name != default)
        by_code: dict[str, tuple[str, ...]] = {}
        for name in names:
            code = name.partition("-")[0]
            by_code[code] = (*by_code.get(code, ()), name)
        return cls(folder, {name: found[name] for name in names}, by_code)

    @property
    def default(self) -> str:
        """The name for words without a language: that of English, else what the tokenizer's settings say."""
        return next(iter(self.vocabularies))

    @property
    def codes(self) -> tuple[str, ...]:
        """ISO 639-3 codes, the default's first."""
        return tuple(self.by_code)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the order of their names."""
        return tuple(map(self.path, sorted(self.vocabularies)))

    @property
    def held_bytes(self) -> int:
        """Bytes of the HELD largest files. Raises OSError."""
        return sum(sorted((path.stat().st_size for path in self.paths), reverse=True)[:HELD])

    def path(self, name: str) -> Path:
        """The file of an adapter."""
        return _file(self.folder, name)

    def names(self, language: str) -> tuple[str, ...]:
        """The adapters for a word's language, ISO 639-3 or empty: several where they differ in script; may be none."""
        if not language:
            return (self.default,)
        if language in self.vocabularies:
            return (language,)
        return self.by_code.get(language) or self.by_code.get(MEMBERS.get(language, ""), ())


def adapter_files(folder: Path, languages: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of the files, which need not be there yet, of the adapters for `languages` of a model of the hub.

    A language is called by the name of its adapter, or by its ISO 639-3 code where only one adapter has that. `folder`
    has the small files of the checkpoint, and `where` is what users call it. Raises EngineLoadError for a language that
    is not in vocab.json or has several adapters, and where languages are named in vain, or have to be and are not.
    """
    found = _vocabularies(folder, read_json(folder / "config.json"))
    if languages and not found:
        raise EngineLoadError(f"{where} has no adapters for languages; leave out #{','.join(languages)}")
    if found and not languages:
        example = DEFAULT if DEFAULT in found else min(found)
        raise EngineLoadError(
            f"{where} has an adapter for each of {len(found)} languages; say which are wanted: {where}#{example}, or "
            "several, with commas between"
        )
    return tuple(_file(folder, _named(language, found, where)).name for language in languages)


def _vocabularies(folder: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tokens of each language by its name, none where a checkpoint is of one language. Raises EngineLoadError."""
    if config.get("adapter_attn_dim") is None:
        return {}
    return {name: tokens for name, tokens in read_vocabulary(folder).items() if isinstance(tokens, dict)}


def _named(language: str, names: Collection[str], where: str) -> str:
    """The name of a language's adapter. Raises EngineLoadError where there is none, or more than one."""
    if language in names:
        return language
    for code in (language, MEMBERS.get(language, "")):
        found = sorted(name for name in names if name.partition("-")[0] == code)
        if len(found) > 1:
            raise EngineLoadError(f"{where} has several adapters for {language!r}: name {' or '.join(found)}")
        if found:
            return found[0]
    some = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    raise EngineLoadError(f"{where} has no adapter for {language!r}; languages are named by ISO 639-3, as {some}")


def _file(folder: Path, name: str) -> Path:
    return folder / f"adapter.{name}.safetensors"
