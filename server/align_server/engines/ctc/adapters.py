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
    from collections.abc import Mapping
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
    def find(cls, folder: Path, config: Mapping[str, Any]) -> Adapters | None:
        """Those of the checkpoint with that config.json, None where it is of one language. Raises EngineLoadError."""
        if config.get("adapter_attn_dim") is None:
            return None
        found = {name: tokens for name, tokens in read_vocabulary(folder).items() if isinstance(tokens, dict)}
        if not found:
            return None
        names = [name for name in sorted(found) if _file(folder, name).is_file()]
        if not names:
            raise EngineLoadError(
                f"{folder} has no adapter of any language in its vocab.json ({', '.join(sorted(found)[:5])}, ...); "
                f"copy or download those that you need, such as {_file(folder, min(found)).name}, into the folder"
            )
        wanted = (DEFAULT, read_json(folder / "tokenizer_config.json").get("target_lang"), config.get("target_lang"))
        default = next((name for name in wanted if name in names), names[0])
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


def _file(folder: Path, name: str) -> Path:
    return folder / f"adapter.{name}.safetensors"
