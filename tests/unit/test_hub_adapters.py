"""Adapters of models of the hub: those of the languages that are named are brought, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from align_server.engines import registry
from align_server.engines.engine import EngineLoadError
from align_server.engines.files import WEIGHTS
from align_server.engines.hub import Reference, fetch, snapshot
from checkpoints import write_adapted
from hub_server import ID, HubServer, restart

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = registry.SETTINGS[registry.CTC]
MANY = "lab/many"
LETTERS = {
    "eng": "abc",
    "cmn-script_simplified": "你好",
    "fra": "abcé",
    "uzb-script_cyrillic": "абв",
    "uzb-script_latin": "abco",
}


def of(*languages: str, revision: str = "main") -> Reference:
    return Reference(MANY, revision, languages)


def adapters(folder: Path) -> set[str]:
    """The languages whose adapters are there."""
    return {path.name.removeprefix("adapter.").removesuffix(".safetensors") for path in folder.glob("adapter.*")}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an adapter for each of several languages."""
    return write_adapted(tmp_path_factory.mktemp("many") / "checkpoint", LETTERS)


class TestAdapters:
    @pytest.fixture(autouse=True)
    def published(self, hub: HubServer, many: Path) -> str:
        """Its commit on the hub."""
        return hub.add(MANY, many)

    def test_those_are_brought_that_are_named_and_no_others(self, many: Path) -> None:
        folder = fetch(of("eng", "uzb-script_latin"), SETTINGS)
        assert adapters(folder) == {"eng", "uzb-script_latin"}
        for name in adapters(folder):
            path = f"adapter.{name}.safetensors"
            assert (folder / path).read_bytes() == (many / path).read_bytes()
        assert snapshot(of("uzb-script_latin", "eng")) == folder

    def test_a_code_or_that_of_its_macrolanguage_will_do_where_it_has_one_adapter(self) -> None:
        assert adapters(fetch(of("cmn"), SETTINGS)) == {"cmn-script_simplified"}
        assert snapshot(of("zho")) == snapshot(of("cmn")) == snapshot(of("cmn-script_simplified"))

    def test_a_code_of_several_adapters_is_refused_with_their_names(self, hub: HubServer) -> None:
        with pytest.raises(
            EngineLoadError, match="several adapters for 'uzb': name uzb-script_cyrillic or uzb-script_l"
        ):
            fetch(of("uzb"), SETTINGS)
        assert hub.loaded(WEIGHTS) == []

    def test_a_language_without_one_is_named_with_some_that_have(self, hub: HubServer) -> None:
        with pytest.raises(
            EngineLoadError, match=r"lab/many#eng,tlh has no adapter for 'tlh'.* as cmn-script_simplified, e"
        ):
            fetch(of("eng", "tlh"), SETTINGS)
        assert hub.loaded(WEIGHTS) == []

    def test_a_file_that_the_hub_lacks_is_named_with_some_that_it_has(self, hub: HubServer, many: Path) -> None:
        hub.add(MANY, many, "lacking", {"adapter.fra.safetensors": None})
        match = r"lab/many@lacking#fra has no adapter\.fra\.safetensors; it has adapter\.cmn-script_simplified\.safeten"
        with pytest.raises(EngineLoadError, match=match):
            fetch(of("fra", revision="lacking"), SETTINGS)
        assert hub.loaded(WEIGHTS) == []

    def test_without_languages_users_are_told_to_name_some(self, hub: HubServer) -> None:
        for _ in range(2):
            with pytest.raises(
                EngineLoadError, match="for each of 5 languages; say which are wanted: lab/many#eng, or"
            ):
                fetch(of(), SETTINGS)
            assert hub.loaded(WEIGHTS) == []
        fetch(of("fra"), SETTINGS)
        assert snapshot(of()) is None
        with pytest.raises(EngineLoadError, match="lab/many#eng"):
            fetch(of(), SETTINGS)

    def test_languages_of_a_model_of_one_are_refused(self, hub: HubServer) -> None:
        for name in (f"ctc:{ID}#eng,fra", f"whisper:{ID}#eng,fra"):
            with pytest.raises(
                EngineLoadError, match="lab/german#eng,fra has no adapters for languages; leave out #eng,f"
            ):
                registry.fetch(name)
        assert hub.loaded(WEIGHTS) == []

    @pytest.mark.parametrize("restarted", [False, True])
    def test_further_languages_are_all_that_is_brought_later(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, restarted: bool
    ) -> None:
        folder = fetch(of("eng"), SETTINGS)
        if restarted:
            restart(monkeypatch)
        assert snapshot(of("eng", "fra")) is None
        assert fetch(of("eng", "fra"), SETTINGS) == snapshot(of("eng", "fra")) == folder
        assert [len(hub.loaded(name)) for name in (WEIGHTS, "adapter.eng.safetensors", "adapter.fra.safetensors")] == [
            1
        ] * 3
        asked = len(hub.asked)
        for languages in (("eng",), ("fra",), ("fra", "eng")):  # the record has all that was brought
            assert fetch(of(*languages), SETTINGS) == folder
        assert len(hub.asked) == asked

    def test_all_languages_of_a_branch_are_of_one_commit_in_a_process(self, hub: HubServer, many: Path) -> None:
        first = fetch(of("eng"), SETTINGS)
        hub.add(MANY, many, more={"README.md": b"new"})
        assert fetch(of("fra"), SETTINGS) == first

    def test_without_the_hub_those_in_the_cache_are_served_and_others_refused(
        self, hub: HubServer, published: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for languages in (("eng", "fra"), ("cmn",)):
            fetch(of(*languages), SETTINGS)
        restart(monkeypatch)
        hub.close()
        assert fetch(of("fra", "cmn"), SETTINGS).name == published
        with pytest.raises(EngineLoadError, match="lab/many#uzb-script_latin is not whole"):
            fetch(of("uzb-script_latin"), SETTINGS)

    def test_one_that_was_cut_since_is_brought_again(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "adapter.fra.safetensors"
        folder = fetch(of("eng", "fra"), SETTINGS)
        (folder / name).resolve().write_bytes(b"x")
        restart(monkeypatch)
        assert snapshot(of("fra")) is None
        fetch(of("fra"), SETTINGS)
        assert hub.loaded(name) == [0, 0]
        assert hub.loaded(WEIGHTS) == [0]

    def test_a_cache_that_another_program_filled_has_to_have_it(self, hub: HubServer, many: Path) -> None:
        for path in many.iterdir():
            if path.name != "adapter.fra.safetensors":
                hf_hub_download(MANY, path.name)
        hub.close()
        assert fetch(of("eng"), SETTINGS) == snapshot(of("eng"))
        assert snapshot(of("fra")) is None

    def test_a_model_serves_the_languages_that_its_name_has_whatever_else_the_cache_has(self) -> None:
        registry.fetch(f"ctc:{MANY}#fra,uzb-script_latin,cmn")
        for languages in (("fra",), ("fra", "uzb"), ("cmn",)):
            name = f"ctc:{MANY}#{','.join(languages)}".replace("uzb", "uzb-script_latin")
            described = registry.describe(name)
            made = registry.create(name, "cpu")
            assert made.languages == described.languages == languages
            assert made.size_bytes == described.size_bytes
        first, second = (registry.create(f"ctc:{MANY}#{name}", "cpu").revision for name in ("fra", "cmn"))
        assert first != second
