"""Places in traces, and where spans go."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import SettingsError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.otlp import OtlpTraces
from pressrun.jobs.settings import load_settings
from pressrun.jobs.traces import SERVED, Place, Span, new_place, parse_traceparent, span_of

from ..collector import collecting
from .conftest import MakeBackend, chat_line, upload_batch

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_a_callers_place_is_read(header: str, sampled: bool) -> None:
    assert parse_traceparent(header) == Place(trace_id=TRACE, span_id=SPAN, is_sampled=sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-xyz",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
    ],
)
def test_what_is_no_place_starts_a_trace_of_its_own(header: str | None) -> None:
    assert parse_traceparent(header) is None


def test_a_place_is_read_as_it_is_written() -> None:
    place = new_place()
    assert parse_traceparent(place.traceparent) == place


def test_the_span_of_a_batch_is_told_once_with_its_times_however_often_it_is_cleaned_up(
    make_backend: MakeBackend,
) -> None:
    with collecting() as collector:
        backend = make_backend(otlp_endpoint=collector.url)
        served = new_place()
        token = SERVED.set(served)
        batch = upload_batch(backend, [chat_line("a"), chat_line("b")])
        SERVED.reset(token)
        place = span_of(backend.store.batch(batch.id))
        validate_batch(backend, batch.id)
        backend.store.cancel(batch.id)
        wind_up(backend, batch.id)
        wind_up(backend, batch.id)
        backend.traces.close()
        spans = collector.spans()
    assert place is not None
    (span,) = spans
    assert (span.trace_id, span.span_id, span.parent_id) == (served.trace_id, place.span_id, served.span_id)
    assert (span.name, span.attributes["pressrun.status"]) == ("batch", "cancelled")
    assert span.attributes["pressrun.lines.total"] == 2
    assert {"in_progress", "cancelling"} <= set(span.events)
    assert span.start_ns <= span.end_ns


def test_what_nobody_traces_keeps_no_place(backend: Backend) -> None:
    batch = upload_batch(backend, [chat_line("a")])
    assert backend.store.batch(batch.id).trace is None
    token = SERVED.set(Place(trace_id=TRACE, span_id=SPAN, is_sampled=False))
    unsampled = upload_batch(backend, [chat_line("a")])
    SERVED.reset(token)
    assert backend.store.batch(unsampled.id).trace is None


def test_a_span_that_is_not_sampled_is_not_sent() -> None:
    with collecting() as collector:
        traces = OtlpTraces(f"{collector.url}/v1/traces")
        for sampled in (True, False):
            place = Place(trace_id=TRACE, span_id=SPAN, is_sampled=sampled)
            traces.tell(Span(name=str(sampled), place=place, parent=None, start_ns=1, end_ns=2))
        traces.close()
        assert [span.name for span in collector.spans()] == ["True"]


def test_traces_without_opentelemetry_say_what_to_install(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "pressrun.jobs.otlp")
    with pytest.raises(SettingsError, match=r"pip install 'pressrun\[otel\]'"):
        make_backend(otlp_endpoint="http://127.0.0.1:1")


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_OTLP_ENDPOINT"):
        load_settings({}, otlp_endpoint="localhost:4318")


def test_no_exporter_is_loaded_where_traces_are_off() -> None:
    code = """
import sys, pressrun.jobs.backend, pressrun.api.app, pressrun.workers.worker
print([name for name in sys.modules if name.startswith("opentelemetry.exporter")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
