"""What align-server takes on its command line and from its environment, and what it shows."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from align_client import ModelInfo, ServerInfo
from align_client.sdk.types import ClientLoad
from align_server import config
from align_server.cli import Size, _run_flags, main
from align_server.tables import MOST_CLIENTS, status_table

if TYPE_CHECKING:
    from pathlib import Path

MB = 2**20
INFO = ServerInfo(
    address="unix:/run/user/1000/chatalign/align.sock",
    version="0.1.0",
    protocol_revision=1,
    pid=4242,
    uptime_s=70_000,
    draining=False,
    device="auto",
    max_segment_s=120,
    max_words=4096,
    queued_s=1234.5,
    computing_s=12.3,
    granted_s=30.25,
    clients=2,
    rate=707.2,
    memory_bytes=689 * MB,
    segments_done=1203,
    audio_done_s=4567.8,
    memory_limit_bytes=2048 * MB,
)
MODEL = ModelInfo(
    name="sphinx-en-us",
    languages=("eng",),
    licence="BSD-2-Clause",
    size_bytes=20 * MB,
    state="serving",
    detail="inside the pocketsphinx wheel",
    revision="75158367ff91",
    max_segment_s=120,
    is_default=True,
    queued_s=1200.5,
    computing_s=12.0,
    rate=707.2,
    batch_s=4.0,
    batch_bytes=3 * MB,
)
FAILED = replace(
    MODEL, name="ctc:/models/" + "x" * 60, languages=(), state="failed", detail="/models/[x] is damaged", revision=""
)


def shown(info: ServerInfo, *models: ModelInfo) -> str:
    page = io.StringIO()
    Console(width=80, file=page).print(status_table(info, models))
    return page.getvalue()


def load(number: int, unanswered_s: float = 0.0, client: str = "host") -> ClientLoad:
    return ClientLoad(f"{client}:{number} #{number}", MODEL.name, unanswered_s, 20.0, 100.0)


class TestSize:
    @pytest.mark.parametrize(
        ("text", "megabytes"),
        [("8G", 8192), ("8 GB", 8192), ("900M", 900), ("900mb", 900), ("1.5GB", 1536), ("2048", 2048)],
    )
    def test_an_amount_of_memory_is_read_in_megabytes_where_it_has_no_unit(self, text: str, megabytes: int) -> None:
        assert Size().convert(text, None, None) == megabytes

    @pytest.mark.parametrize("text", ["0", "0G", "0.5M", "lots", "", "-8G", "8T", "8GG", "B", "1.G"])
    def test_what_is_no_amount_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(click.BadParameter, match="8G or 900M"):
            Size().convert(text, None, None)

    def test_a_wrong_limit_is_wrong_usage(self) -> None:
        result = CliRunner().invoke(main, ["run", "--memory-limit", "lots"])
        assert result.exit_code == 2
        assert "'lots' is no amount of memory" in result.output


class TestDevice:
    def test_there_is_no_other_than_those_that_are_named(self) -> None:
        result = CliRunner().invoke(main, ["run", "--device", "cuda:first"])
        assert result.exit_code == 2
        assert "device is 'cuda:first'; it can be auto, cpu, cuda, mps, or one GPU such as cuda:1" in result.output

    def test_a_server_in_the_background_is_given_it(self) -> None:
        assert _run_flags(device="cuda:1") == ["--device", "cuda:1"]


class TestPrecision:
    def test_there_is_no_other_than_those_that_are_named(self) -> None:
        result = CliRunner().invoke(main, ["run", "--precision", "fp16"])
        assert result.exit_code == 2
        assert all(name in result.output for name in ("fp16", *config.PRECISIONS))

    def test_a_server_in_the_background_is_given_it(self) -> None:
        assert _run_flags(precision="int8", device=None) == ["--precision", "int8"]
        assert config.load(None, precision="int8").precision == "int8"
        assert config.load(None).precision == "auto"


class TestConfig:
    @pytest.mark.parametrize("variable", ["ALIGN_PREPROCESS_WORKERS", "ALIGN_DECODE_WORKERS"])
    @pytest.mark.parametrize("text", ["many", "-1", "2.5", " "])
    def test_a_wrong_number_of_workers_is_told_with_its_variable(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
    ) -> None:
        monkeypatch.setenv(variable, text)
        with pytest.raises(config.ConfigError, match=rf"\${variable} is '{text}'"):
            config.load(None)

    def test_numbers_of_workers_come_from_the_environment_before_the_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "server.toml"
        path.write_text("preprocess_workers = 7\ndecode_workers = 8\n")
        monkeypatch.setenv("ALIGN_PREPROCESS_WORKERS", "3")
        monkeypatch.setenv("ALIGN_DECODE_WORKERS", "")
        loaded = config.load(path)
        assert (loaded.preprocess_count(), loaded.decode_count()) == (3, 8)

    def test_without_numbers_of_workers_there_is_at_least_one_of_each(self) -> None:
        loaded = config.load(None)
        assert min(loaded.preprocess_count(), loaded.decode_count(), loaded.lane_count("cpu")) >= 1
        assert [loaded.lane_count(device) for device in ("cuda", "cuda:1", "mps")] == [2, 2, 1]

    def test_a_model_named_twice_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        for models in (("a", "b", "a"), ("ctc:m", f"ctc:{tmp_path}/m")):
            with pytest.raises(config.ConfigError, match="named twice"):
                config.load(None, models=models)

    def test_one_model_in_a_file_needs_no_list(self, tmp_path: Path) -> None:
        path = tmp_path / "server.toml"
        path.write_text('models = "sphinx-en-us"\n')
        assert config.load(path).models == ("sphinx-en-us",)

    @pytest.mark.parametrize("text", ["models = 5", "models = [5]", 'lanes = "two"', "socket = 1"])
    def test_a_setting_of_the_wrong_type_is_told(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "server.toml"
        path.write_text(text)
        with pytest.raises(config.ConfigError, match="wrong type"):
            config.load(path)

    @pytest.mark.parametrize("name", ["lanes", "memory_limit_mb", "idle_unload_s", "preprocess_workers"])
    def test_a_negative_number_is_told_with_its_name(self, name: str) -> None:
        with pytest.raises(config.ConfigError, match=f"{name} is -1"):
            config.load(None, **{name: -1})

    @pytest.mark.parametrize(
        ("text", "address"),
        [("127.0.0.1:9100", ("127.0.0.1", 9100)), (":9100", ("127.0.0.1", 9100)), ("[::1]:9100", ("::1", 9100))],
    )
    def test_metrics_have_a_host_and_a_port(self, text: str, address: tuple[str, int]) -> None:
        assert config.load(None, metrics=text).metrics_address == address

    @pytest.mark.parametrize("text", ["9100", "localhost", "localhost:", "localhost:http", "127.0.0.1:99999"])
    def test_metrics_without_a_port_that_can_be_are_refused(self, text: str) -> None:
        with pytest.raises(config.ConfigError, match="--metrics takes HOST:PORT"):
            config.load(None, metrics=text)

    def test_a_memory_limit_is_bytes_for_the_server_and_has_a_default(self) -> None:
        assert config.load(None, memory_limit_mb=900).memory_limit() == 900 * MB
        assert config.load(None).memory_limit() > 100 * MB


class TestStatus:
    def test_the_figures_of_the_server_are_told_in_words(self) -> None:
        text = shown(replace(INFO, refused={"full": 3, "deadline": 1}, in_vain=2), MODEL)
        for words in (
            "process 4242, up 19 h 26 min",
            "2 streams open",
            "1234 s waiting, 12.3 s computing, 30.2 s granted",
            "1203 segments, 4568 s of audio, 2 in vain",
            "1 deadline, 3 full",
            "707 s of audio per second",
            "689 MB resident of at most 2048 MB",
        ):
            assert words in text

    def test_a_model_has_a_row_and_one_that_does_not_serve_says_why(self) -> None:
        text = shown(INFO, MODEL, FAILED)
        row = next(line for line in text.splitlines() if "sphinx-en-us" in line)
        assert row.split() == [
            "sphinx-en-us",
            "serving",
            "1200",
            "s",
            "12.0",
            "s",
            "707",
            "s/s",
            "4.0",
            "s,",
            "3",
            "MB",
        ]
        assert "eng, up to 120 s" in text
        assert "75158367ff91" in text
        assert f"{FAILED.name} (failed):" in " ".join(text.split())
        assert "/models/[x] is damaged" in text
        assert MODEL.detail not in text

    def test_everything_fits_into_80_columns(self) -> None:
        clients = tuple(load(n, n, "a-very-long-host-name.of-some-university.example.org") for n in range(40))
        text = shown(replace(INFO, by_client=clients), MODEL, FAILED)
        assert max(map(len, text.splitlines())) <= 80
        assert all(line.rstrip().endswith("s") for line in text.splitlines() if " #" in line)

    def test_the_busiest_clients_come_first_and_the_rest_are_a_number(self) -> None:
        clients = tuple(load(n, unanswered_s=n % 17) for n in range(17))
        text = shown(replace(INFO, by_client=clients), MODEL)
        rows = [line for line in text.splitlines() if "host:" in line]
        assert [row.split()[1] for row in rows] == [f"#{n}" for n in range(16, 16 - MOST_CLIENTS, -1)]
        assert f"and {17 - MOST_CLIENTS} more" in text

    def test_without_streams_there_is_no_table_of_clients(self) -> None:
        assert "unanswered" not in shown(replace(INFO, clients=0), MODEL)

    def test_a_client_cannot_write_to_the_terminal_of_who_watches(self) -> None:
        odd = ClientLoad("\x1b[2J[red]x[/]", MODEL.name, 0.0, 0.0, 0.0)
        text = shown(replace(INFO, by_client=(odd,)), MODEL)
        assert "\x1b" not in text
        assert "?[2J[red]x[/]" in text
