"""What Prometheus reads: counters and histograms kept as work goes by, gauges asked for when they are read.

Imported by every part of the server and knows none of them; reads no clock and no files.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

SECONDS = (0.001, 0.003, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
AUDIO_SECONDS = (1, 3, 10, 30, 100, 300)
CLASSES = {True: "interactive", False: "bulk"}

Reading = tuple[str, str, dict[str, str], float]  # name, help, labels, value


class Metrics:
    """The server's own registry of metrics. All names begin with `align_`. Costs and audio are given in ms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._segments = self._counter("segments", "Segments answered.", "model", "priority")
        self._audio = self._counter("audio_seconds", "Audio of the segments answered.", "model", "priority")
        self._padding = self._counter("padding_seconds", "Cost that padding added to batches.", "model")
        self._batch = self._histogram(
            "batch_audio_seconds", "Cost of a batch, padding included.", "model", buckets=AUDIO_SECONDS
        )
        self._wait = self._histogram("queue_wait_seconds", "From accepted to taken.", "model", "priority")
        self._step = self._histogram("step_seconds", "Of a batch, by step.", "model", "step")
        self._refusals = self._counter("refusals", "Work refused, by reason.", "reason")
        self._requests = self._histogram("request_seconds", "Single calls, by outcome.", "outcome")
        self._failures = self._counter("failures", "Segments on which a model failed.", "model", "reason")
        self._ran_out = self._counter("out_of_memory", "Batches that ran out of memory.", "model")
        self._vain = self._counter("in_vain", "Segments computed that nobody waited for any more.", "model")

        self._answers = functools.cache(  # by model and class; prometheus looks each up under a lock, for every segment
            lambda *labels: (self._segments.labels(*labels), self._audio.labels(*labels))
        )

    def answered(self, model: str, audio_ms: int, *, interactive: bool) -> None:
        """The result of a segment was handed over."""
        segments, audio = self._answers(model, CLASSES[interactive])
        segments.inc()
        audio.inc(audio_ms / 1000)

    def batch(self, model: str, *, cost_ms: int, padded_ms: int) -> None:
        """A batch was computed; `padded_ms` is its cost with padding, `cost_ms` without."""
        self._padding.labels(model).inc((padded_ms - cost_ms) / 1000)
        self._batch.labels(model).observe(padded_ms / 1000)

    def waited(self, model: str, seconds: Iterable[float], *, interactive: bool) -> None:
        """Segments waited that long before they were taken into a batch."""
        wait = self._wait.labels(model, CLASSES[interactive])
        for one in seconds:
            wait.observe(one)

    def step(self, model: str, step: str, seconds: float) -> None:
        """A batch came through a step: prepare, compute or decode."""
        self._step.labels(model, step).observe(seconds)

    def refused(self, reason: str) -> None:
        """Work was refused; `reason` is that of the refusal."""
        self._refusals.labels(reason).inc()

    def request(self, outcome: str, seconds: float) -> None:
        """A single call ended: answered, cancelled, failed, or with the reason of its refusal."""
        self._requests.labels(outcome).observe(seconds)

    def failed(self, model: str, *, out_of_memory: bool) -> None:
        """A model failed on a segment by itself."""
        self._failures.labels(model, "memory" if out_of_memory else "error").inc()

    def ran_out(self, model: str) -> None:
        """A batch ran out of memory and was halved."""
        self._ran_out.labels(model).inc()

    def in_vain(self, model: str) -> None:
        """A result came for which nobody waited any more."""
        self._vain.labels(model).inc()

    @property
    def vain(self) -> int:
        """How many results came for which nobody waited any more, of all models."""
        return sum(int(sample.value) for metric in self._vain.collect() for sample in _totals(metric))

    def refusals(self) -> dict[str, int]:
        """How much was refused, by reason."""
        return {
            sample.labels["reason"]: int(sample.value)
            for metric in self._refusals.collect()
            for sample in _totals(metric)
        }

    def watch(self, readings: Callable[[], Iterable[Reading]]) -> None:
        """Ask for gauges whenever the metrics are read. `readings` is called in the thread that serves them."""
        self.registry.register(_Gauges(readings))

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve them over HTTP in a thread; returns what stops it. Raises OSError where the port is taken."""
        server, thread = start_http_server(port, host, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"align_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"align_{name}", text, labels, buckets=buckets, registry=self.registry)


class _Gauges:
    """Turns readings into the families of one scrape."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._readings = readings

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the models that are loaded."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One family for each name."""
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, value in self._readings():
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        yield from families.values()


def _totals(metric: Metric) -> list[Sample]:
    """The samples that count, without those that say since when."""
    return [sample for sample in metric.samples if sample.name.endswith("_total")]
