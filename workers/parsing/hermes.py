"""Calls as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Iterator

from ..deltas import Delta
from .calls import Call, Calls, call_in
from .marked import marked_calls
from .source import Source, Steps, blank_end, needs, parsed, value_end

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read(source: Source, calls: Calls) -> Iterator[Delta | None]:
    yield from marked_calls(source, OPEN, lambda: told(source, calls, _call(source)))


def told(source: Source, calls: Calls, reading: Steps[Call | None]) -> Steps[bool]:
    """Tell the call that is read, with the tag that ends it; whether it is one."""
    call = yield from reading
    if call is None:
        return False
    yield from calls.made(*call)
    yield from _skip_end(source)
    return True


def _call(source: Source) -> Steps[Call | None]:
    start = yield from blank_end(source, 0)
    end = yield from value_end(source, start)
    call = None if end is None else call_in(parsed(source.rest[start:end]), "arguments", "parameters")
    if call is not None:
        source.take(end or 0)
    return call


def _skip_end(source: Source) -> Steps[None]:
    """Take the tag that ends a call, if it comes next, whole or cut off by the end of the text."""
    start = yield from blank_end(source, 0)
    yield from needs(source, start + len(CLOSE))
    if source.rest.startswith(CLOSE, start) or CLOSE.startswith(source.rest[start:]):
        source.take(start + len(CLOSE))
