"""Models of the hub come into its cache whole, checked and once, or users are told what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from align_server.engines import hub_files, registry
from align_server.engines.engine import EngineLoadError
from align_server.engines.files import INDEX, WEIGHTS
from align_server.engines.hub import Reference, fetch, snapshot
from hub_server import ID, TOKEN, HubServer, identity, restart
from whispers import write_whisper

if TYPE_CHECKING:
    from pathlib import Path

MODEL = Reference(ID)
SETTINGS = registry.SETTINGS[registry.CTC]


def weights(hub: HubServer) -> bytes:
    return hub.commits[ID, hub.commit][WEIGHTS]


class TestNames:
    @pytest.mark.parametrize(
        ("text", "repository", "revision"),
        [
            ("facebook/wav2vec2-base-960h", "facebook/wav2vec2-base-960h", "main"),
            ("a/b", "a/b", "main"),
            ("_x/y_.z-1@v1.0", "_x/y_.z-1", "v1.0"),
            ("a/b@refs/pr/7", "a/b", "refs/pr/7"),
            (f"a/b@{'0' * 40}", "a/b", "0" * 40),
        ],
    )
    def test_an_owner_and_a_name_are_an_id(self, text: str, repository: str, revision: str) -> None:
        assert Reference.parse(text) == Reference(repository, revision)

    @pytest.mark.parametrize(
        "text",
        [
            *("name", "./a/b", "/a/b", "~/a/b", "../a/b", "a/b/c", "a//b", "a/", "a/b@", "a b/c", "a/b.git", "a/b--c"),
            *("-a/b", "a/.b", "a/b.", "a/b..c", "ä/b", "a/b@-x", "a/b@../x", f"a/{'x' * 97}", "a/b\n"),
        ],
    )
    def test_all_else_is_a_folder(self, text: str) -> None:
        assert Reference.parse(text) is None

    @pytest.mark.parametrize(
        ("text", "reference"),
        [
            ("a/b#eng", Reference("a/b", languages=("eng",))),
            ("a/b#eng,uzb-script_latin", Reference("a/b", languages=("eng", "uzb-script_latin"))),
            ("a/b@v1.0#fra", Reference("a/b", "v1.0", ("fra",))),
        ],
    )
    def test_an_id_names_languages_at_its_end(self, text: str, reference: Reference) -> None:
        assert Reference.parse(text) == reference
        assert str(reference) == text
        assert registry.absolute(f"ctc:{text}") == f"ctc:{text}"

    def test_a_language_that_is_named_twice_is_wanted_once(self) -> None:
        assert str(Reference.parse("a/b#eng,fra,eng")) == "a/b#eng,fra"

    @pytest.mark.parametrize("text", ["a/b#", "a/b#eng,", "a/b#,eng", "a/b#e/n", "a/b#..", "a/b#eng@v1"])
    def test_what_names_no_languages_is_a_folder(self, text: str) -> None:
        assert Reference.parse(text) is None

    def test_a_folder_that_is_there_comes_first(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, german: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert registry.absolute(f"ctc:{ID}") == f"ctc:{ID}"
        shutil.copytree(german, tmp_path / ID)
        assert registry.absolute(f"ctc:{ID}") == f"ctc:{tmp_path}/{ID}"
        described = registry.fetch(f"ctc:{ID}")
        assert (described.remote, described.size_bytes > 0) == (False, True)
        assert hub.asked == []

    def test_a_pt_is_always_a_file(self) -> None:
        assert registry.absolute("whisper:models/none.pt").startswith("whisper:/")
        assert not registry.describe("whisper:models/none.pt").remote


class TestDownload:
    def test_what_is_needed_is_brought_and_nothing_else(self, hub: HubServer, german: Path) -> None:
        more = {"pytorch_model.bin": b"x", "training_args.bin": b"x", "README.md": b"---\nlicense: mit\n---\n"}
        hub.commit = hub.add(ID, german, more=more)
        folder = fetch(MODEL, SETTINGS)
        assert folder.name == hub.commit
        assert {path.name for path in folder.iterdir()} == {path.name for path in german.iterdir()} | {"README.md"}
        assert all((folder / path.name).read_bytes() == path.read_bytes() for path in german.iterdir())
        assert snapshot(MODEL) == folder

    @pytest.mark.usefixtures("hub")
    def test_progress_says_which_file_and_how_much_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub_files, "REPORT", 1)
        seen: list[tuple[float, str]] = []
        fetch(MODEL, SETTINGS, lambda share, what: seen.append((share, what)))
        shares = [share for share, _ in seen]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert (1.0, f"downloading {WEIGHTS} (0 of 0 MB)") in seen

    def test_progress_can_end_it_and_what_is_there_is_kept(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub_files, "REPORT", 1)
        hub.faults.cut_after[WEIGHTS] = [20_000]

        class Enough(Exception):  # noqa: N818  as those who have had it say
            pass

        def enough(_share: float, what: str) -> None:
            if what.startswith("downloading"):
                raise Enough

        with pytest.raises(Enough):
            fetch(MODEL, SETTINGS, enough)
        assert snapshot(MODEL) is None
        fetch(MODEL, SETTINGS)
        assert hub.loaded(WEIGHTS)[1] > 0

    def test_weights_in_parts_are_brought_with_their_index(self, hub: HubServer, german: Path, tmp_path: Path) -> None:
        tensors = load_file(german / WEIGHTS)
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        data: dict[str, bytes | None] = {WEIGHTS: None}
        for part, own in parts.items():
            save_file({name: tensors[name] for name in own}, tmp_path / part, {"format": "pt"})
            data[part] = (tmp_path / part).read_bytes()
        index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
        hub.add(ID, german, more=data | {INDEX: json.dumps(index).encode(), "c.safetensors": b"x"})
        folder = fetch(MODEL, SETTINGS)
        assert {path.name for path in folder.glob("*.safetensors")} == set(parts)
        assert registry.describe(f"ctc:{ID}").size_bytes == sum((folder / part).stat().st_size for part in parts)
        data["b.safetensors"] = None
        hub.add(ID, german, "lacking", data | {INDEX: json.dumps(index).encode()})
        with pytest.raises(EngineLoadError, match=r"has no b\.safetensors, which its model\.safetensors\.index\.json"):
            fetch(Reference(ID, "lacking"), SETTINGS)

    def test_two_at_once_download_it_once(self, hub: HubServer) -> None:
        hub.faults.rate = 1e6
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(fetch(MODEL, SETTINGS))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert hub.loaded(WEIGHTS) == [0]

    def test_two_processes_at_once_download_it_once(self, hub: HubServer, tmp_path: Path) -> None:
        hub.faults.rate = 5e5
        hub.faults.cut_after[WEIGHTS] = [20_000]
        code = f"from align_server.engines import registry; print(registry.fetch('ctc:{ID}').size_bytes)"
        environment = {**os.environ, **hub.environment(tmp_path / "cache")}
        command = [sys.executable, "-c", code]
        both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=60)[0] for process in both] == [f"{len(weights(hub))}\n"] * 2
        assert hub.loaded(WEIGHTS) == [0, 20_000]

    def test_a_disk_without_room_is_told_with_figures(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "free")  # noqa: PYI024  as shutil has it
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(20_000))
        with pytest.raises(EngineLoadError, match=r"takes 0 MB more, and .*cache has 0 MB left.*HF_HUB_CACHE"):
            fetch(MODEL, SETTINGS)
        assert hub.loaded(WEIGHTS) == []

    def test_a_cache_that_cannot_be_written_is_told(self, hub: HubServer, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "models--lab--german").write_text("in the way")
        with pytest.raises(EngineLoadError, match=r"cannot be kept in .*models--lab--german.*HF_HUB_CACHE"):
            fetch(MODEL, SETTINGS)
        assert hub.loaded(WEIGHTS) == []


class TestBroken:
    def test_a_download_that_is_cut_goes_on_where_it_was(self, hub: HubServer) -> None:
        hub.faults.cut_after[WEIGHTS] = [20_000, 0, 0, 5_000]
        folder = fetch(MODEL, SETTINGS)
        assert hub.loaded(WEIGHTS) == [0, 20_000, 20_000, 20_000, 25_000]
        assert (folder / WEIGHTS).read_bytes() == weights(hub)

    def test_one_that_was_given_up_is_resumed_by_the_next_process(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.faults.cut_after[WEIGHTS] = [20_000, *[0] * hub_files.TRIES]
        with pytest.raises(EngineLoadError, match="broke off"):
            fetch(MODEL, SETTINGS)
        assert snapshot(MODEL) is None
        restart(monkeypatch)
        fetch(MODEL, SETTINGS)
        assert hub.loaded(WEIGHTS)[-1] == 20_000

    def test_a_hub_that_knows_no_ranges_is_asked_for_everything(self, hub: HubServer) -> None:
        hub.faults.ignores_ranges = True
        hub.faults.cut_after[WEIGHTS] = [20_000]
        assert (fetch(MODEL, SETTINGS) / WEIGHTS).read_bytes() == weights(hub)

    @pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
    def test_a_file_with_a_wrong_byte_is_removed_and_told(self, hub: HubServer, name: str) -> None:
        hub.faults.spoilt.add(name)
        with pytest.raises(EngineLoadError, match=f"sent for {name} of {ID} is not the file that it lists"):
            fetch(MODEL, SETTINGS)
        assert snapshot(MODEL) is None
        hub.faults.spoilt.clear()
        folder = fetch(MODEL, SETTINGS)
        assert (folder / WEIGHTS).read_bytes() == weights(hub)
        assert hub.loaded(WEIGHTS)[-1] == 0

    def test_a_beginning_with_a_wrong_byte_is_not_kept(self, hub: HubServer, tmp_path: Path) -> None:
        blob = tmp_path / "cache" / "models--lab--german" / "blobs" / f"{identity(WEIGHTS, weights(hub))}.incomplete"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"x" * 10_000)
        assert (fetch(MODEL, SETTINGS) / WEIGHTS).read_bytes() == weights(hub)
        assert hub.loaded(WEIGHTS) == [10_000, 0]
        assert not blob.exists()

    def test_weights_that_were_cut_since_are_brought_again(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = fetch(MODEL, SETTINGS)
        (folder / WEIGHTS).resolve().write_bytes(weights(hub)[:1000])
        restart(monkeypatch)
        assert (
            snapshot(MODEL) is None or snapshot(MODEL) == folder
        )  # it says which weights are there, not that they load
        assert (fetch(MODEL, SETTINGS) / WEIGHTS).read_bytes() == weights(hub)

    def test_what_another_program_left_wrong_is_brought_again(self, hub: HubServer) -> None:
        hub.faults.spoilt.add(WEIGHTS)
        path = hf_hub_download(ID, WEIGHTS)
        hub.faults.spoilt.clear()
        folder = fetch(MODEL, SETTINGS)
        assert str(folder / WEIGHTS) == path
        assert (folder / WEIGHTS).read_bytes() == weights(hub)


class TestRevisions:
    def test_a_branch_is_settled_once_in_a_process(
        self, hub: HubServer, german: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = fetch(MODEL, SETTINGS)
        later = hub.add(ID, german, more={"vocab.json": b"{}"})
        asked = len(hub.asked)
        assert fetch(MODEL, SETTINGS) == snapshot(MODEL) == first
        assert len(hub.asked) == asked
        restart(monkeypatch)
        assert snapshot(MODEL) == first
        assert fetch(MODEL, SETTINGS).name == later
        assert snapshot(MODEL) == first.with_name(later)
        assert hub.loaded(WEIGHTS) == [0]  # they are the same

    def test_a_branch_that_did_not_move_costs_one_question(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch(MODEL, SETTINGS)
        restart(monkeypatch)
        asked = len(hub.asked)
        fetch(MODEL, SETTINGS)
        assert len(hub.asked) == asked + 1

    @pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7"])
    def test_a_tag_or_pull_request_is_a_revision(self, hub: HubServer, german: Path, revision: str) -> None:
        commit = hub.add(ID, german, revision, more={"vocab.json": b"{}"})
        folder = fetch(Reference(ID, revision), SETTINGS)
        assert folder.name == commit != hub.commit
        assert snapshot(Reference(ID, revision)) == folder
        assert snapshot(MODEL) is None

    def test_a_commit_that_is_there_needs_no_network(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        pinned = Reference(ID, hub.commit)
        folder = fetch(pinned, SETTINGS)
        restart(monkeypatch)
        hub.close()
        with capture_logs() as logs:
            assert fetch(pinned, SETTINGS) == snapshot(pinned) == folder
        assert logs == []


class TestWithoutTheHub:
    def test_what_the_cache_has_of_that_branch_will_do(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = fetch(MODEL, SETTINGS)
        restart(monkeypatch)
        hub.close()
        with capture_logs() as logs:
            assert fetch(MODEL, SETTINGS) == folder
        (line,) = logs
        assert (line["event"], line["commit"]) == ("model from the cache", hub.commit)
        assert "could not be reached" in line["why"]

    def test_a_cache_that_another_program_filled_will_do(self, hub: HubServer, german: Path) -> None:
        for path in german.iterdir():
            hf_hub_download(ID, path.name)
        hub.close()
        assert fetch(MODEL, SETTINGS).name == hub.commit

    def test_a_newer_commit_that_cannot_be_had_leaves_the_older(
        self, hub: HubServer, german: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = fetch(MODEL, SETTINGS)
        hub.add(ID, german, more={WEIGHTS: weights(hub) + b"x"})
        hub.faults.spoilt.add(WEIGHTS)
        restart(monkeypatch)
        with capture_logs() as logs:
            assert fetch(MODEL, SETTINGS) == folder
        assert "is not the file" in logs[0]["why"]

    @pytest.mark.parametrize("partial", [False, True])
    def test_without_a_whole_one_users_are_told_what_failed_and_what_to_do(self, hub: HubServer, partial: bool) -> None:
        if partial:
            hf_hub_download(ID, "config.json")
        hub.close()
        with pytest.raises(EngineLoadError) as caught:
            fetch(MODEL, SETTINGS)
        for words in (hub.url, "could not be reached", "refused", "copy models--lab--german", "HF_HUB_CACHE", "folder"):
            assert words in str(caught.value)

    def test_offline_mode_is_named(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(EngineLoadError, match="HF_HUB_OFFLINE is set, and lab/german is not whole in"):
            fetch(MODEL, SETTINGS)
        assert hub.asked == []

    def test_a_hub_that_fails_is_told_by_its_status(self, hub: HubServer) -> None:
        hub.faults.status = 500
        with pytest.raises(EngineLoadError, match="answered with status 500, and lab/german is not whole"):
            fetch(MODEL, SETTINGS)

    def test_describing_never_asks_the_hub(self, hub: HubServer, german: Path) -> None:
        found = registry.describe(f"ctc:{ID}")
        assert (found.languages, found.licence, found.size_bytes, found.note) == ((), "", 0, "not downloaded yet")
        assert registry.describe(f"whisper:{ID}").transcribes
        assert hub.asked == []
        hub.commit = hub.add(ID, german, more={"README.md": b"---\nlicense: mit\n---\n"})
        fetched = registry.fetch(f"ctc:{ID}")
        hub.close()
        assert registry.describe(f"ctc:{ID}") == fetched
        assert (fetched.name, fetched.licence, fetched.size_bytes) == (f"ctc:{ID}", "mit", len(weights(hub)))
        assert f"from the hub at commit {hub.commit}" in fetched.note

    def test_an_engine_is_only_made_of_what_is_here(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add("lab/hears", write_whisper(tmp_path / "whisper"))
        for name in (f"ctc:{ID}", "whisper:lab/hears"):
            with pytest.raises(EngineLoadError, match=f"{name} is not downloaded yet"):
                registry.create(name, "cpu")
            described = registry.fetch(name)
            made = registry.create(name, "cpu")
            assert made.name == name
            assert made.languages == described.languages


class TestRefusals:
    @pytest.mark.parametrize(
        ("reference", "match"),
        [
            (Reference("lab/none"), r"there is no model lab/none at http.*private.*HF_TOKEN"),
            (Reference("lab/private"), r"there is no model lab/private at http.*private.*HF_TOKEN"),
            (Reference("lab/gated"), r"lab/gated is only for those who were let in.*HF_TOKEN"),
            (Reference(ID, "v9"), r"lab/german has no branch, tag or commit 'v9'; http.*/lab/german/tree/main"),
            (Reference(ID, "0" * 40), r"lab/german has no branch, tag or commit '0{40}'"),
        ],
    )
    def test_what_the_hub_does_not_give_is_told_with_what_to_do(
        self, hub: HubServer, german: Path, reference: Reference, match: str
    ) -> None:
        for name in ("gated", "private"):
            hub.add(f"lab/{name}", german)
        hub.faults.gated.add("lab/gated")
        hub.faults.private.add("lab/private")
        with pytest.raises(EngineLoadError, match=match):
            fetch(reference, SETTINGS)
        assert snapshot(reference) is None

    def test_a_token_opens_what_is_private(self, hub: HubServer, german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add("lab/private", german)
        hub.faults.private.add("lab/private")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert (fetch(Reference("lab/private"), SETTINGS) / WEIGHTS).is_file()

    def test_a_hub_that_forbids_says_so(self, hub: HubServer) -> None:
        hub.faults.status = 403
        with pytest.raises(EngineLoadError, match=r"does not let lab/german be read \(status 403\); set HF_TOKEN"):
            fetch(MODEL, SETTINGS)

    def test_pickled_weights_are_not_brought(self, hub: HubServer, german: Path) -> None:
        hub.add(ID, german, more={WEIGHTS: None, "pytorch_model.bin": b"x"})
        with pytest.raises(EngineLoadError, match=r"weights in pytorch_model\.bin and not as .*@refs/pr/NUMBER"):
            fetch(MODEL, SETTINGS)
        assert hub.loaded("pytorch_model.bin") == hub.loaded("config.json") == []

    def test_what_is_no_checkpoint_is_told(self, hub: HubServer, german: Path) -> None:
        hub.add(ID, german, more={WEIGHTS: None})
        with pytest.raises(EngineLoadError, match="there are no weights that could be read"):
            fetch(MODEL, SETTINGS)
        hub.add(ID, german, "bare", more={"config.json": None})
        with pytest.raises(EngineLoadError, match=r"has no config\.json: it is not a checkpoint"):
            fetch(Reference(ID, "bare"), SETTINGS)
