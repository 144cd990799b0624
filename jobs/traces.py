"""Which spans belong together, across processes: W3C's trace context, and a span as it is told once it is over.

A batch carries the place in a trace where it was made (`Batch.trace`). The id of its own span follows from its name, so
that whoever runs its lines can say whose they are before that span is told, by whoever ends the batch. Knows nothing of
how spans are sent (`otlp.py`), and costs nothing where nobody wants them.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from .records import ENDED, Batch

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 1
Value = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A span of a trace, by its ids in hex."""

    trace_id: str
    span_id: str
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    def below(self, span_id: str | None = None) -> Place:
        """A new span in the same trace."""
        return replace(self, span_id=span_id or secrets.token_hex(8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What happened at a `place`, from one time to another (Unix nanoseconds). `events` are moments of it."""

    name: str
    place: Place
    parent: Place | None
    start_ns: int
    end_ns: int
    kind: Literal["internal", "server"] = "internal"
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: tuple[tuple[str, int], ...] = ()
    error: str | None = None


class Traces(Protocol):
    """Where spans go. `is_on` tells whether making them is worth the trouble."""

    is_on: bool

    def tell(self, span: Span) -> None: ...
    def close(self) -> None: ...


class NoTraces:
    """Nobody wants spans."""

    is_on = False

    def tell(self, span: Span) -> None:
        pass

    def close(self) -> None:
        pass


# The request that is being served, for what it creates.
SERVED: ContextVar[Place | None] = ContextVar("served", default=None)


def parse_traceparent(header: str | None) -> Place | None:
    """The caller's span; None where the header is missing or not valid, which starts a new trace."""
    match = TRACEPARENT.fullmatch(header or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "00" and more:
        return None
    return Place(trace_id=trace_id, span_id=span_id, is_sampled=bool(int(flags, 16) & SAMPLED))


def new_place() -> Place:
    """The first span of a trace."""
    return Place(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))


def trace_of_creation() -> str | None:
    """What a batch that is being made keeps: the request that makes it, and when."""
    traceparent = traceparent_of_request()
    return None if traceparent is None else f"{traceparent} {time.time_ns()}"


def traceparent_of_request() -> str | None:
    """The request that is being served; None where nobody traces it."""
    served = SERVED.get()
    return served.traceparent if served is not None and served.is_sampled else None


def span_of(batch: Batch) -> Place | None:
    """The batch's own span; None where it is not traced."""
    maker = parse_traceparent((batch.trace or "").partition(" ")[0])
    return None if maker is None else maker.below(hashlib.blake2b(batch.name.encode(), digest_size=8).hexdigest())


def tell_of_end(traces: Traces, batch: Batch) -> None:
    """Tell the span of an ended batch or job, with the times of its statuses as events."""
    place = span_of(batch) if traces.is_on else None
    if place is None or batch.trace is None or batch.status not in ENDED:
        return
    traceparent, _, created_ns = batch.trace.partition(" ")
    opened_ns = min(batch.times.values()) * 10**9 if batch.generation else int(created_ns)
    ended_at = batch.times[f"{batch.status}_at"]
    events = {name.removesuffix("_at"): at for name, at in batch.times.items() if name != f"{batch.status}_at"}
    traces.tell(
        Span(
            name=batch.kind,
            place=place,
            parent=parse_traceparent(traceparent),
            start_ns=opened_ns,
            # The time of the end is kept in whole seconds, and telling of it follows at once, or much later.
            end_ns=max(opened_ns, min(time.time_ns(), (ended_at + 1) * 10**9)),
            attributes=_attributes(batch),
            events=tuple((name, max(opened_ns, at * 10**9)) for name, at in sorted(events.items(), key=lambda e: e[1])),
            error=batch.errors[0].code if batch.status == "failed" and batch.errors else None,
        )
    )


def _attributes(batch: Batch) -> dict[str, Value]:
    counts, usage = batch.counts, batch.usage
    return {
        f"pressrun.{batch.kind}.id": batch.id,
        "pressrun.status": batch.status,
        "pressrun.generation": batch.generation,
        "pressrun.lines.total": counts.total,
        "pressrun.lines.completed": counts.completed,
        "pressrun.lines.failed": counts.failed,
        "url.path": batch.endpoint,
        "gen_ai.request.model": batch.model or "",
        "gen_ai.usage.prompt_tokens": usage.input_tokens,
        "gen_ai.usage.completion_tokens": usage.output_tokens,
    }
