"""Grammars that an answer cannot leave, so that it calls the tools that it must call, with arguments by their schemas.

In llguidance's variant of Lark, with the schemas inside. Knows nothing of engines, nor of thoughts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..jobs.errors import UserError
from ..jobs.requests import ChatCompletionRequest
from ..jobs.tools import Tool
from . import coder_grammars
from .parsing import hermes, mistral
from .parsing.style import Style
from .thought_grammars import ANY_TEXT, literal, text_up_to

NO_PARAMETERS: Mapping[str, Any] = {"properties": {}, "additionalProperties": False}
# Whatever a schema says of itself: what is not followed is refused, and no model loses itself in white space.
EXACTLY: Mapping[str, Any] = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A function that may be called, and the schema of its arguments."""

    name: str
    schema: str
    any_arguments: bool


def grammar_of_tools(body: ChatCompletionRequest, style: Style) -> str | None:
    """The serialised grammar of an answer that must call tools, or whose calls must be strict; None for any other.

    Raises UserError that names the field for schemas that cannot be followed.
    """
    forced = bool(body.wanted)
    if not forced and not any(tool.function.strict for tool in body.offered):
        return None
    assert style.tools is not None, "tools are refused where nobody could read the calls"
    _check_schemas(body, style)
    offers = [
        _offer(tool, any_arguments=not forced and not tool.function.strict) for tool in body.wanted or body.offered
    ]
    several = body.parallel_tool_calls is not False
    from llguidance import LLMatcher

    lark = "\n".join(["start: answer", ANY_TEXT, *_RULES[style.tools](offers, style, forced, several)])
    return str(LLMatcher.grammar_from_lark(lark))


def _offer(tool: Tool, *, any_arguments: bool) -> _Offer:
    schema = {} if any_arguments else tool.function.parameters or NO_PARAMETERS
    exact = json.dumps({"type": "object", **schema, "x-guidance": EXACTLY})
    return _Offer(name=tool.function.name, schema=exact, any_arguments=any_arguments)


def _check_schemas(body: ChatCompletionRequest, style: Style) -> None:
    wanted = body.wanted or [tool for tool in body.offered if tool.function.strict]
    for place, tool in enumerate(body.tools or ()):
        if tool in wanted:
            why = _fault(_offer(tool, any_arguments=False).schema, between_tags=style.tools == "qwen3_coder")
            if why:
                param = f"tools[{place}].function.parameters"
                raise UserError(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")


@functools.lru_cache(maxsize=1024)
def _fault(schema: str, *, between_tags: bool) -> str:
    """Why a schema cannot be followed, in a line; "" if it can."""
    from llguidance import LLMatcher

    why = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema)).partition("\n")[0]
    return why or (coder_grammars.fault_in(json.loads(schema)) if between_tags else "")


def _hermes(offers: Sequence[_Offer], style: Style, forced: bool, several: bool) -> list[str]:
    return _between_tags(_functions(offers, "arguments"), style, forced, several)


def _between_tags(functions: list[str], style: Style, forced: bool, several: bool) -> list[str]:
    end = f'"\\n" function "\\n" {literal(hermes.CLOSE, style)}'
    call = f"{literal(hermes.OPEN, style)} {end}"
    if forced:
        return [f"answer: {call}" + (f' ("\\n" {call})*' if several else ""), *functions]
    return [f"answer: (lead {end})* TEXT", text_up_to(hermes.OPEN, style, "lead"), *functions]


def _llama3(offers: Sequence[_Offer], style: Style, forced: bool, several: bool) -> list[str]:
    calls = 'function ("; " function)*' if several else "function"
    functions = _functions(offers, "parameters")
    if forced:
        return [f"answer: {calls}", *functions]
    # What begins like a call is one.
    return [f"answer: {calls} | OTHER?", r"OTHER: /\s*[^{\s](.|\n)*/", *functions]


def _mistral(offers: Sequence[_Offer], style: Style, forced: bool, several: bool) -> list[str]:
    if mistral.ARGS in style.markers:
        end, functions = "function", _named_functions(offers, style)
        calls = f"({literal(mistral.MARKER, style)} function)" + ("+" if several else "")
    else:
        end, functions = (
            '"[" function' + (' (", " function)*' if several else "") + ' "]"',
            _functions(offers, "arguments"),
        )
        calls = f"{literal(mistral.MARKER, style)} {end}"
    if forced:
        return [f"answer: {calls}", *functions]
    return [f"answer: (lead {end})* TEXT", text_up_to(mistral.MARKER, style, "lead"), *functions]


def _qwen3_coder(offers: Sequence[_Offer], style: Style, forced: bool, several: bool) -> list[str]:
    functions = [(offer.name, None if offer.any_arguments else json.loads(offer.schema)) for offer in offers]
    return _between_tags(coder_grammars.rules_of_functions(functions), style, forced, several)


_RULES: Mapping[str, Callable[[Sequence[_Offer], Style, bool, bool], list[str]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
    "qwen3_coder": _qwen3_coder,
}


def _functions(offers: Sequence[_Offer], key: str) -> list[str]:
    """The rules of `function`: a JSON object with a name, and with arguments under `key`."""
    heads = [json.dumps(f'{{"name": "{offer.name}", "{key}": ') for offer in offers]
    return _choices(offers, [f'{head} arguments_{place} "}}"' for place, head in enumerate(heads)])


def _named_functions(offers: Sequence[_Offer], style: Style) -> list[str]:
    """The same where the name stands before the arguments."""
    args = literal(mistral.ARGS, style)
    return _choices(offers, [f'"{offer.name}" {args} arguments_{place}' for place, offer in enumerate(offers)])


def _choices(offers: Sequence[_Offer], calls: Sequence[str]) -> list[str]:
    arguments = [f"arguments_{place}: %json {offer.schema}" for place, offer in enumerate(offers)]
    return [f"function: {' | '.join(calls)}", *arguments]
