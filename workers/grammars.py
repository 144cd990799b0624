"""From the shape that a request asks for to a grammar that an engine can follow, and refusals of what it cannot.

A grammar is compiled here for a tokenizer of bytes, in bounded time, so that what is wrong with it is told before the
line runs, with the field's name. The engine compiles it again for the model's own. Knows nothing of engines.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..engine.errors import GrammarRefused
from ..engine.grammars import byte_tokenizer, compile_grammar
from ..jobs.errors import UserError
from ..jobs.structured import ResponseFormat, Structured, StructuredOutputs

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

Kind: TypeAlias = Literal["json", "regex", "choice", "grammar"]
ANY_OBJECT = '{"type":"object"}'
# Whatever a schema says of itself: what is not followed is refused, and no model loses itself in white space.
OVERRIDES: JsonCompileOptions = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}",
}


def grammar_of(body: Structured) -> str | None:
    """The grammar that a request's text is to follow. Raises UserError that names the field and what is wrong."""
    asked = _asked(body)
    if asked is None:
        return None
    field, kind, text = asked
    grammar, fault = _compiled(kind, text)
    if fault is not None:
        raise UserError(f"Invalid value for '{field}': {fault}", param=field, code="invalid_value")
    return grammar


def _asked(body: Structured) -> tuple[str, Kind, str] | None:
    """The field that asks for a shape, its kind, and the shape as text."""
    if body.structured_outputs is not None:
        return _by_structured_outputs(body.structured_outputs)
    return None if body.response_format is None else _by_response_format(body.response_format)


def _by_response_format(asked: ResponseFormat) -> tuple[str, Kind, str] | None:
    if asked.type == "text":
        return None
    if asked.json_schema is None:
        return "response_format", "json", ANY_OBJECT
    return "response_format.json_schema.schema", "json", json.dumps(asked.json_schema.json_schema)


def _by_structured_outputs(asked: StructuredOutputs) -> tuple[str, Kind, str]:
    if asked.regex is not None:
        return "structured_outputs.regex", "regex", asked.regex
    if asked.choice is not None:
        return "structured_outputs.choice", "choice", json.dumps(asked.choice)
    if asked.grammar is not None:
        return "structured_outputs.grammar", "grammar", asked.grammar
    shape = asked.json_shape if asked.json_shape is not None else ANY_OBJECT
    return "structured_outputs.json", "json", shape if isinstance(shape, str) else json.dumps(shape)


@functools.lru_cache(maxsize=256)
def _compiled(kind: Kind, text: str) -> tuple[str, str | None]:
    """The grammar, and why it cannot be followed. Kept, because most lines of a batch ask for the same."""
    try:
        grammar = _written(kind, text)
        compile_grammar(grammar, byte_tokenizer())
    except GrammarRefused as refusal:
        return "", str(refusal).replace("Unimplemented keys", "it holds keywords that are not supported")
    return grammar, None


def _written(kind: Kind, text: str) -> str:
    """As llguidance writes grammars. Raises GrammarRefused."""
    byte_tokenizer()  # Says if the package is missing.
    from llguidance import LLMatcher

    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, json.loads(text))))
    if kind == "grammar":
        if "::=" in text:
            raise GrammarRefused("it must be a Lark grammar: rules are written 'start: …', not 'root ::= …'")
        return LLMatcher.grammar_from_lark(text)
    try:
        if not isinstance(json.loads(text), dict):
            raise GrammarRefused("a schema must be a JSON object")
        return LLMatcher.grammar_from_json_schema(text, overrides=OVERRIDES)
    except (ValueError, RecursionError) as e:
        raise GrammarRefused(f"the schema is no JSON that can be read: {e}") from e
