"""What happens to work is counted, and read over HTTP as Prometheus reads it."""

from __future__ import annotations

import contextlib
import urllib.error
from typing import TYPE_CHECKING

import pytest

from align_server.metrics import Metrics
from support import Scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def page(metrics: Metrics, free_port: int) -> Iterator[Callable[[], Scrape]]:
    stop = metrics.serve("127.0.0.1", free_port)
    yield lambda: Scrape(f"127.0.0.1:{free_port}")
    stop()


class TestCounters:
    def test_answers_are_counted_by_model_and_priority_with_their_audio(
        self, metrics: Metrics, page: Callable[[], Scrape]
    ) -> None:
        metrics.answered("a", 1500, interactive=True)
        metrics.answered("a", 2500, interactive=True)
        metrics.answered("a", 700, interactive=False)
        metrics.answered("b", 100, interactive=False)
        seen = page()
        assert seen("align_segments_total", model="a", priority="interactive") == 2
        assert seen("align_audio_seconds_total", model="a", priority="interactive") == 4
        assert seen("align_segments_total", priority="bulk") == 2
        assert seen("align_audio_seconds_total") == pytest.approx(4.8)

    def test_padding_is_what_batches_cost_beyond_their_segments(
        self, metrics: Metrics, page: Callable[[], Scrape]
    ) -> None:
        metrics.batch("a", cost_ms=9_000, padded_ms=10_000)
        metrics.batch("a", cost_ms=2_000, padded_ms=2_000)
        seen = page()
        assert seen("align_padding_seconds_total", model="a") == 1
        assert seen("align_batch_audio_seconds_count", model="a") == 2
        assert seen("align_batch_audio_seconds_sum", model="a") == 12
        assert seen("align_batch_audio_seconds_bucket", model="a", le="3.0") == 1

    def test_waits_and_steps_are_kept_apart(self, metrics: Metrics, page: Callable[[], Scrape]) -> None:
        metrics.waited("a", [0.5, 1.5], interactive=False)
        for step, seconds in (("prepare", 0.1), ("compute", 0.2), ("compute", 0.4), ("decode", 0.3)):
            metrics.step("a", step, seconds)
        seen = page()
        assert seen("align_queue_wait_seconds_count", model="a", priority="bulk") == 2
        assert seen("align_queue_wait_seconds_sum", model="a") == 2
        assert seen.labels("align_step_seconds_count", "step") == {"prepare", "compute", "decode"}
        assert seen("align_step_seconds_sum", step="compute") == pytest.approx(0.6)

    def test_refusals_are_told_by_reason_on_the_page_and_to_the_server_itself(
        self, metrics: Metrics, page: Callable[[], Scrape]
    ) -> None:
        for reason in ("full", "deadline", "full"):
            metrics.refused(reason)
        assert metrics.refusals() == {"full": 2, "deadline": 1}
        assert page()("align_refusals_total", reason="full") == 2

    def test_calls_failures_and_work_in_vain_are_counted(self, metrics: Metrics, page: Callable[[], Scrape]) -> None:
        metrics.request("answered", 0.25)
        metrics.request("full", 0.001)
        metrics.failed("a", out_of_memory=True)
        metrics.failed("a", out_of_memory=False)
        metrics.ran_out("a")
        metrics.in_vain("a")
        metrics.in_vain("b")
        seen = page()
        assert seen("align_request_seconds_count", outcome="answered") == 1
        assert seen("align_request_seconds_sum", outcome="full") == pytest.approx(0.001)
        assert seen("align_failures_total", reason="memory") == 1
        assert seen("align_failures_total", reason="error") == 1
        assert seen("align_out_of_memory_total", model="a") == 1
        assert seen("align_in_vain_total") == metrics.vain == 2


class TestGauges:
    def test_gauges_are_asked_for_at_each_reading(self, metrics: Metrics, page: Callable[[], Scrape]) -> None:
        now = {"a": 1.0, "b": 2.0}
        metrics.watch(lambda: [("align_queued", "What waits.", {"model": name}, now[name]) for name in now])
        assert (page()("align_queued", model="a"), page()("align_queued", model="b")) == (1, 2)
        now["a"] = 5.0
        del now["b"]
        seen = page()
        assert seen("align_queued", model="a") == 5
        assert seen.labels("align_queued", "model") == {"a"}

    def test_each_gauge_is_one_family_with_its_help(self, metrics: Metrics, page: Callable[[], Scrape]) -> None:
        metrics.watch(lambda: [("align_x", "About x.", {"client": name}, 1.0) for name in ('odd "name"\n', "b")])
        families = [family for family in page().families if family.name == "align_x"]
        assert [(f.documentation, f.type, len(f.samples)) for f in families] == [("About x.", "gauge", 2)]
        assert page().labels("align_x", "client") == {'odd "name"\n', "b"}

    def test_every_name_begins_with_align(self, page: Callable[[], Scrape]) -> None:
        names = {family.name for family in page().families}
        assert names
        assert all(name.startswith("align_") for name in names)


class TestServing:
    def test_a_port_in_use_raises_and_a_stopped_page_is_gone(self, metrics: Metrics, free_port: int) -> None:
        stop = metrics.serve("127.0.0.1", free_port)
        with contextlib.ExitStack() as stack:
            stack.callback(stop)
            with pytest.raises(OSError, match="in use"):
                Metrics().serve("127.0.0.1", free_port)
        with pytest.raises(urllib.error.URLError):
            Scrape(f"127.0.0.1:{free_port}")
