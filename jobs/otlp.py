"""Spans on their way to a collector, by OpenTelemetry's SDK over OTLP/HTTP: in groups, from a thread of its own.

A collector that is away costs the spans, and nobody time. Headers, certificates and time-outs are taken from the SDK's
own OTEL_EXPORTER_OTLP_… variables. Imported only where traces are wanted, because it needs `pressrun[otel]`.
"""

from __future__ import annotations

import os
import socket
from threading import Lock, Thread

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from .. import __version__
from .traces import Place, Span

PATH = "/v1/traces"
LAST_WORDS_S = 2.0  # How long a process that ends waits for a collector.
KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER}


class OtlpTraces:
    """Thread-safe. `endpoint` is the collector's address, with or without `PATH`."""

    is_on = True

    def __init__(self, endpoint: str) -> None:
        url = endpoint if endpoint.endswith(PATH) else endpoint.rstrip("/") + PATH
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url))
        self._ids = _Ids()
        # Which traces are sampled was decided when they began.
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(), id_generator=self._ids, shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("pressrun", __version__)
        self._lock = Lock()

    def tell(self, span: Span) -> None:
        """Send a span that is over, unless its trace is not sampled."""
        if not span.place.is_sampled:
            return
        context = None if span.parent is None else set_span_in_context(NonRecordingSpan(_context(span.parent)))
        with self._lock:
            self._ids.next = span.place
            told = self._tracer.start_span(
                span.name, context, KINDS[span.kind], attributes=dict(span.attributes), start_time=span.start_ns
            )
        for name, at in span.events:
            told.add_event(name, timestamp=at)
        if span.error is not None:
            told.set_status(Status(StatusCode.ERROR, span.error))
        told.end(span.end_ns)

    def close(self) -> None:
        """Send what is left, if the collector takes it soon."""
        closing = Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(LAST_WORDS_S)


class _Ids(IdGenerator):
    """Gives the ids that a span has already."""

    next: Place

    def generate_span_id(self) -> int:
        return int(self.next.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self.next.trace_id, 16)


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and who we are."""
    own: dict[str, str | int] = {
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    if "OTEL_SERVICE_NAME" not in os.environ:
        own["service.name"] = "pressrun"
    return Resource.create(dict(own))


def _context(place: Place) -> SpanContext:
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
