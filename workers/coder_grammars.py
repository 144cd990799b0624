"""Grammars of calls in Qwen3-Coder's format, whose parameters stand between tags: strings bare, all else as JSON.

A parameter follows its own schema, and those that must be there are. What cannot be followed between tags is refused by
name. In llguidance's variant of Lark. Knows nothing of what stands around a function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .parsing.kinds import ALL, kinds_of, resolved

Schema = Mapping[str, Any]
# What a function's schema may say, since no parameter is ever written but those that it names.
OF_FUNCTIONS = {"type", "properties", "required", "additionalProperties", "unevaluatedProperties"}
OF_STRINGS = {"type", "enum", "const", "minLength", "maxLength", "pattern"}
SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
SAYS_NOTHING |= {"$schema", "$id", "$defs", "definitions", "x-guidance"}
DEEPEST = 16  # Of references that lead to others.
END = r'"\n</parameter>\n"'
# The reader ends a value at the first closing tag, and a call at the first end of a function.
ENDED = r"\n<\/parameter>\n/ & ~/(?s:.*)<\/(parameter|function)>(?s:.*)\n<\/parameter>\n/"
TEXT = rf"VALUE: /(?s:.*){ENDED}"
ANYTHING = r"ANYTHING: /(?s:.*)<\/function>/ & ~/(?s:.*)<\/function>(?s:.+)/"


class Unfollowable(ValueError):
    """A schema asks for what cannot be kept to between tags; the text says what."""


def rules_of_functions(functions: Sequence[tuple[str, Schema | None]]) -> list[str]:
    """The rules of `function`: one of these, by their schemas; None is a function with any parameters.

    Raises Unfollowable.
    """
    choices, rules = [], [TEXT, ANYTHING]
    for place, (name, schema) in enumerate(functions):
        if schema is None:
            choices.append(f'"<function={name}>" ANYTHING')
        else:
            choices.append(rf'"<function={name}>\n" parameters_{place} "</function>"')
            rules += _rules_of_parameters(place, schema)
    return [f"function: {' | '.join(choices)}", *rules]


def fault_in(schema: Schema) -> str:
    """Why a function's schema cannot be followed, in a line; "" if it can."""
    from llguidance import LLMatcher

    try:
        rules = rules_of_functions([("f", schema)])
    except Unfollowable as error:
        return str(error)
    lark = "\n".join(["start: function", *rules])
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark)).partition("\n")[0]


def _rules_of_parameters(function: int, schema: Schema) -> Iterator[str]:
    _check(schema, OF_FUNCTIONS)
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    unknown = next((name for name in required if name not in properties), None)
    if unknown is not None:
        raise Unfollowable(f"'{unknown}' is required and not among the properties")
    names = [f"parameter_{function}_{place}" for place in range(len(properties))]
    series = [name if one in required else f"{name}?" for name, one in zip(names, properties, strict=True)]
    yield f"parameters_{function}: {' '.join(series)}"
    for name, (parameter, own) in zip(names, properties.items(), strict=True):
        if not re.fullmatch(r"[^<>\n]+", parameter):
            raise Unfollowable(f"no parameter can be called {json.dumps(parameter)} between tags")
        try:
            value, *rules = _value(name, own, schema)
        except Unfollowable as error:
            raise Unfollowable(f"of '{parameter}', {error}") from error
        yield rf"{name}: {_literal(f'<parameter={parameter}>')} " + rf'"\n" {value}'
        yield from rules


def _value(name: str, own: object, root: Schema) -> list[str]:
    """What a parameter's value is, up to its closing tag, and rules that this needs."""
    kinds = kinds_of(own, root)
    if own is False or not kinds:
        raise Unfollowable("no value is allowed")
    if "string" not in kinds:
        shared = {key: root[key] for key in ("$defs", "definitions", "x-guidance") if key in root}
        return [f"json_{name} {END}", f"json_{name}: %json {json.dumps({**_object(own), **shared})}"]
    if kinds == ALL or kinds == {"string"}:
        return _text(name, _of_strings(own, root))
    if kinds == {"string", "null"}:
        text, *rules = _text(name, _of_strings(own, root))
        return [f'({text} | "null" {END})', *rules]
    raise Unfollowable("a string cannot be told from what else is allowed")


def _of_strings(own: object, root: Schema, depth: int = 0) -> Schema:
    """The part of a schema that is about strings, of which there may be one."""
    schema = _object(own)
    if "$ref" in schema and depth < DEEPEST:
        _check(schema, {"$ref"})
        return _of_strings(resolved(schema, root), root, depth + 1)
    for name in {"anyOf", "oneOf"} & schema.keys():
        _check(schema, {name})
        branches = [one for one in schema[name] if "string" in kinds_of(one, root)]
        if len(branches) == 1 and depth < DEEPEST:
            return _of_strings(branches[0], root, depth + 1)
    _check(schema, OF_STRINGS)
    return schema


def _text(name: str, schema: Schema) -> list[str]:
    """A bare string up to its closing tag, and rules that this needs."""
    bounds = schema.keys() & {"minLength", "maxLength", "pattern"}
    if schema.keys() & {"enum", "const"}:
        if bounds:
            raise Unfollowable(f"'{min(bounds)}' cannot be followed beside a choice of strings")
        return [f"({' | '.join(map(_literal, _choices(schema)))}) {END}"]
    if not bounds:
        return ["VALUE"]
    most = schema.get("maxLength", "")
    length = rf"/(?s:.{{{schema.get('minLength', 0)},{most}}}){ENDED}"
    pattern = rf" & /{_searched(schema['pattern'])}\n<\/parameter>\n/" if "pattern" in schema else ""
    return [name.upper(), f"{name.upper()}: {length}{pattern}"]


def _choices(schema: Schema) -> list[str]:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    choices = [one for one in values if isinstance(one, str) and one == schema.get("const", one)]
    if any(tag in one for one in choices for tag in ("</parameter>", "</function>")):
        raise Unfollowable("a choice holds a closing tag")
    return choices


def _searched(pattern: str) -> str:
    """A regex, as rules have it, of whole texts in which the pattern is found; anchors may stand at its ends only."""
    inner = pattern.removeprefix("^")
    ends = re.search(r"(?<!\\)(\\\\)*\$\Z", inner) is not None
    inner = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", inner[:-1] if ends else inner, flags=re.DOTALL)
    inner = inner.replace("\n", r"\n")
    free = r"(?s:.*)"
    return f"{'' if pattern.startswith('^') else free}({inner}){'' if ends else free}"


def _check(schema: Schema, known: set[str]) -> None:
    unknown = next((name for name in schema if name not in known | SAYS_NOTHING), None)
    if unknown is not None:
        raise Unfollowable(f"'{unknown}' cannot be followed in this format")


def _object(schema: object) -> Schema:
    return schema if isinstance(schema, dict) else {}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
