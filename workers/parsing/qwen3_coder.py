"""Calls as Qwen3-Coder writes them, `<function=name><parameter=key>value</parameter></function>` in `<tool_call>`.

Values are bare text; what they are is told by the function's schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..deltas import Delta
from .calls import Call, Calls
from .hermes import OPEN, told
from .marked import marked_calls
from .source import Source, Steps, parsed, place_of

FUNCTION_END = "</function>"
_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>(.*)", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def read(source: Source, calls: Calls) -> Iterator[Delta | None]:
    yield from marked_calls(source, OPEN, lambda: told(source, calls, _call(source, calls)))


def _call(source: Source, calls: Calls) -> Steps[Call | None]:
    end = yield from place_of(source, FUNCTION_END, 0)
    function = None if end is None else _FUNCTION.fullmatch(source.rest, 0, end)
    if end is None or function is None:
        return None
    properties = calls.schemas.get(function[1], {}).get("properties")
    arguments = _arguments(function[2], properties if isinstance(properties, dict) else {})
    if arguments is None:
        return None
    source.take(end + len(FUNCTION_END))
    return function[1], arguments


def _arguments(text: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that the text is made of; None if there is anything else in it."""
    found, place = {}, len(text) - len(text.lstrip())
    while place < len(text):
        parameter = _PARAMETER.match(text, place)
        if parameter is None:
            return None
        found[parameter[1]] = _value(parameter[2], properties.get(parameter[1]))
        place = parameter.end()
    return found


def _value(text: str, schema: object) -> Any:
    """What the text stands for, by its schema; the text itself where it is to be a string, or spells nothing else."""
    kind = schema.get("type", "string") if isinstance(schema, dict) else "string"
    if kind == "string":
        return text
    text = text.strip()
    value = parsed(text.lower() if kind == "boolean" else text)
    return text if value is None and text != "null" else value
