"""Calls as Mistral writes them: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, newer `[TOOL_CALLS]name[ARGS]{…}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..deltas import Delta
from .calls import Call, Calls, call_in
from .marked import marked_calls
from .source import Source, Steps, blank_end, parsed, place_of, value_end

MARKER, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MOST_HEAD = 512  # Characters of a name and what belongs to it.
_HEAD = re.compile(r"\s*([\w.-]{1,256})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*")


def read(source: Source, calls: Calls) -> Iterator[Delta | None]:
    yield from marked_calls(source, MARKER, lambda: _series(source, calls))


def _series(source: Source, calls: Calls) -> Steps[bool]:
    """Read the calls that come next; whether there were any."""
    start = yield from blank_end(source, 0)
    listed = source.rest.startswith("[", start)
    found = yield from (_listed(source, start) if listed else _named(source, start))
    for call in found:
        yield from calls.made(*call)
    return bool(found)


def _listed(source: Source, start: int) -> Steps[list[Call]]:
    """The calls of an array; none unless all of its elements are calls."""
    end = yield from value_end(source, start)
    value = None if end is None else parsed(source.rest[start:end])
    found = [call_in(one, "arguments") for one in value] if isinstance(value, list) else []
    if end is None or None in found:
        return []
    if found:
        source.take(end)
    return [call for call in found if call is not None]


def _named(source: Source, start: int) -> Steps[list[Call]]:
    """The call whose name stands before its arguments."""
    brace = yield from place_of(source, "{", start)
    head = None if brace is None or brace > start + MOST_HEAD else _HEAD.fullmatch(source.rest, start, brace)
    if brace is None or head is None:
        return []
    end = yield from value_end(source, brace)
    arguments = None if end is None else parsed(source.rest[brace:end])
    if end is None or not isinstance(arguments, dict):
        return []
    source.take(end)
    return [(head[1], arguments)]
