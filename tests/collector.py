"""A collector of traces, in a thread: the spans that came by OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .receiver import Receiver, receiving


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A span, with its ids in hex and its attributes by name."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    error: str


class Collector:
    """`url` is what PRESSRUN_OTLP_ENDPOINT wants."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.url = receiver.url.removesuffix("/hook")

    def spans(self, name: str | None = None) -> list[Got]:
        """All that has come, or what has come under a name."""
        found = []
        for request in self.receiver.got:
            assert request.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                assert named["service.name"] == "pressrun"
                found += [_got(span) for scope in resource.scope_spans for span in scope.spans]
        return [span for span in found if name in (None, span.name)]


def _got(span: Any) -> Got:
    return Got(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes={one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
        events=[event.name for event in span.events],
        failed=span.status.code == 2,
        error=span.status.message,
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    with receiving() as receiver:
        yield Collector(receiver)
