"""Calls as Qwen3-Coder writes them, `<function=name><parameter=key>value</parameter></function>` in `<tool_call>`.

Values are bare text; what they are is told by the function's schema.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..deltas import Delta
from .calls import Call, Calls
from .hermes import OPEN, told
from .kinds import ALL, kind_of, kinds_of
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
    arguments = _arguments(function[2], calls.schemas.get(function[1], {}))
    if arguments is None:
        return None
    source.take(end + len(FUNCTION_END))
    return function[1], arguments


def _arguments(text: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that the text is made of; None if there is anything else in it."""
    properties = schema.get("properties")
    kinds = functools.cache(
        lambda name: kinds_of(properties.get(name) if isinstance(properties, dict) else None, schema)
    )
    found, place = {}, len(text) - len(text.lstrip())
    while place < len(text):
        parameter = _PARAMETER.match(text, place)
        if parameter is None:
            return None
        found[parameter[1]] = _value(parameter[2], kinds(parameter[1]))
        place = parameter.end()
    return found


def _value(text: str, kinds: Collection[str]) -> Any:
    """What the text stands for, if it may be of these kinds; the text itself where it spells none but a string."""
    if kinds in (ALL, {"string"}):
        return text
    spelled = text.strip()
    value = parsed(spelled.lower() if "boolean" in kinds and spelled.lower() in ("true", "false") else spelled)
    if value is None and spelled != "null":
        return text
    return text if "string" in kinds and kind_of(value) not in {*kinds} - {"string"} else value
