"""Settings are checked where they are made, and one address has one server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from align_server import config
from align_server.lock import AddressLock, LockedError, UnsafeFolderError, owner, private_folder


class TestConfig:
    def test_flags_come_before_the_file_and_the_file_before_the_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "server.toml"
        path.write_text('device = "cpu"\nlanes = 3\nsocket = "/run/x.sock"\n')
        loaded = config.load(path, lanes=5)
        assert (loaded.device, loaded.lanes, loaded.socket) == ("cpu", 5, Path("/run/x.sock"))
        assert loaded.models == ("sphinx-en-us",)
        assert loaded.address == "unix:/run/x.sock"

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("devise = 'cpu'", "devise"),
            ("device = 'tpu'", "tpu.*auto, cpu, cuda, mps, or one GPU such as cuda:1"),
            ("device = 'cuda:'", "cuda:"),
            ("device = 'cuda:N'", "cuda:N"),
            ("device = 5", "wrong type"),
            ("device = 'cpu:1'", "cpu:1"),
            ("precision = 'fp16'", "fp16.*auto, fp32, bf16, int8"),
            ("device = ", "cannot read"),
            ("token = 'x'", "token"),
            ("max_queued_ms = 1000", "600000"),
            ("models = []", "--model"),
        ],
    )
    def test_a_setting_that_cannot_be_used_is_named(self, tmp_path: Path, text: str, hint: str) -> None:
        path = tmp_path / "server.toml"
        path.write_text(text)
        with pytest.raises(config.ConfigError, match=hint):
            config.load(path)

    def test_one_gpu_of_several_has_a_number(self) -> None:
        assert config.load(None, device="cuda:11").device == "cuda:11"

    def test_a_model_on_the_cpu_is_prepared_for_by_its_lanes_unless_workers_are_asked_for(self) -> None:
        assert not config.Config().pipelined("cpu")
        assert config.Config().pipelined("cuda")
        assert config.Config(preprocess_workers=2).pipelined("cpu")

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(config.ConfigError, match=r"none\.toml"):
            config.load(tmp_path / "none.toml")

    def test_a_socket_path_longer_than_the_system_allows_is_refused(self) -> None:
        with pytest.raises(config.ConfigError, match="107"):
            config.load(None, socket=Path("/run") / ("x" * 120))

    def test_tcp_without_a_token_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(config.ConfigError, match="ALIGN_TOKEN"):
            config.load(None, listen="127.0.0.1:7000")
        monkeypatch.setenv("ALIGN_TOKEN", "secret")
        assert config.load(None, listen="127.0.0.1:7000").address == "127.0.0.1:7000"
        with pytest.raises(config.ConfigError, match="HOST:PORT"):
            config.load(None, listen="localhost")


class TestLock:
    def test_one_holder_at_a_time_and_its_process_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        assert owner(path) is None
        lock = AddressLock(path)
        lock.acquire()
        assert owner(path) == os.getpid()
        with pytest.raises(LockedError, match=str(os.getpid())):
            AddressLock(path).acquire()
        lock.release()
        assert owner(path) is None
        second = AddressLock(path)
        second.acquire()
        second.release()

    def test_a_folder_is_made_private_and_an_open_one_refused(self, tmp_path: Path) -> None:
        private_folder(tmp_path / "new")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        (tmp_path / "open").mkdir(mode=0o755)
        with pytest.raises(UnsafeFolderError, match="chmod 700"):
            private_folder(tmp_path / "open")

    def test_a_link_to_a_folder_is_not_trusted(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(UnsafeFolderError):
            private_folder(tmp_path / "link")
