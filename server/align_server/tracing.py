"""OpenTelemetry traces, an extra: a span for each segment, with the steps that it came through as children.

Does nothing unless `chatalign[otel]` is installed and OpenTelemetry's own variables name a collector, such as
OTEL_EXPORTER_OTLP_ENDPOINT. A caller's `traceparent`, of a single call or of a whole stream, is taken up.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import structlog

from align_server import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from align_server.scheduling.work import Work

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

STEPS = ("queue", "prepare", "compute", "decode")

log = structlog.get_logger()


class Tracer:
    """Makes spans of what is over, from the times that work carries: nothing is done while it is under way."""

    def __init__(self) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        self._propagator: Any = None
        self._to_epoch = time.time() - time.monotonic()
        if any(os.environ.get(name) for name in ENDPOINTS):
            self._start()

    @property
    def is_on(self) -> bool:
        """Whether anybody collects traces."""
        return self._tracer is not None

    def context(self, metadata: Iterable[tuple[str, str | bytes]]) -> Any:
        """The trace that the caller is in, if any."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._propagator.extract(carrier) if self._propagator else None

    def segment(self, work: Work, model: str, outcome: str, context: Any = None) -> None:
        """A segment was answered or refused: its span, with the steps that it came through."""
        if self._tracer is None:
            return
        ended = time.monotonic()
        attributes = {
            "align.model": model,
            "align.client": work.client,
            "align.audio_ms": work.segment.duration_ms,
            "align.words": len(work.segment.words),
            "align.priority": "interactive" if work.interactive else "bulk",
            "align.outcome": outcome,
        }
        span = self._tracer.start_span(
            "align segment", context, attributes=attributes, start_time=self._ns(work.accepted_at)
        )
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415  an extra

        inside = set_span_in_context(span)
        times = [work.accepted_at, work.taken_at, work.prepared_at, work.computed_at, ended]
        for name, (start, end) in zip(STEPS, itertools.pairwise(times), strict=True):
            if start and end:
                step = self._tracer.start_span(name, inside, start_time=self._ns(start))
                step.end(self._ns(end))
        span.end(self._ns(ended))

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()

    def _ns(self, monotonic: float) -> int:
        return int((monotonic + self._to_epoch) * 1e9)

    def _start(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  an extra
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  the same
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  the same
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  the same
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415  the same
                TraceContextTextMapPropagator,
            )
        except ImportError:
            log.warning("no traces: install them with: pip install 'chatalign[otel]'")
            return
        resource = Resource.create({"service.name": "align-server", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("align_server", __version__)
        self._propagator = TraceContextTextMapPropagator()
