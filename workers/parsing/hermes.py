"""Calls as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Iterator

from ..deltas import Delta
from .calls import MOST_CALLS, Call, Calls, call_in
from .source import Source, Steps, blank_end, content, needs, parsed, value_end, words_until

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read(source: Source, calls: Calls) -> Iterator[Delta | None]:
    """A marker that no call follows stays content, and so does what follows it."""
    after_call = False
    for _ in range(MOST_CALLS):
        marker = yield from words_until(source, OPEN, trim=after_call)
        if marker is None:
            return
        call = yield from _call(source)
        if call is None:
            yield content(marker)
        else:
            yield from calls.made(*call)
            yield from skip_end(source, CLOSE)
        after_call = call is not None
    yield from rest(source)


def _call(source: Source) -> Steps[Call | None]:
    start = yield from blank_end(source, 0)
    end = yield from value_end(source, start)
    call = None if end is None else call_in(parsed(source.rest[start:end]), "arguments", "parameters")
    if call is not None:
        source.take(end or 0)
    return call


def skip_end(source: Source, tag: str) -> Steps[None]:
    """Take the tag that ends a call, if it comes next, whole or cut off by the end of the text."""
    start = yield from blank_end(source, 0)
    yield from needs(source, start + len(tag))
    if source.rest.startswith(tag, start) or tag.startswith(source.rest[start:]):
        source.take(start + len(tag))


def rest(source: Source) -> Iterator[Delta | None]:
    """All that is left is content."""
    while True:
        if source.rest:
            yield content(source.take(len(source.rest)))
        if source.ended:
            return
        yield None
