"""Calls as Llama 3 writes them: JSON and nothing before it, or behind `<|python_tag|>`; several with `;` between.

An answer may be JSON by itself, so that only an object with the name of a function on offer counts as a call.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..deltas import Delta
from .calls import MOST_CALLS, Calls, call_in
from .marked import marked_calls
from .source import Source, Steps, blank_end, parsed, value_end

TAG = "<|python_tag|>"


def read(source: Source, calls: Calls) -> Iterator[Delta | None]:
    """What is not a call is content, as it stands."""
    after_call = yield from _series(source, calls)
    yield from marked_calls(source, TAG, lambda: _series(source, calls), after_call=after_call)


def _series(source: Source, calls: Calls) -> Steps[bool]:
    """Read the calls that come next; whether there were any."""
    start, found = 0, False
    for _ in range(MOST_CALLS):
        start = yield from blank_end(source, start)
        end = yield from value_end(source, start)
        call = None if end is None else call_in(parsed(source.rest[start:end]), "parameters", "arguments")
        if end is None or call is None or call[0] not in calls.schemas:
            break
        source.take(end)
        found = True
        yield from calls.made(*call)
        start = yield from blank_end(source, 0)
        if not source.rest.startswith(";", start):
            break
        start += 1
    return found
