"""Which kinds of JSON values a schema allows. Knows nothing of how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ALL = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
Schema = Mapping[str, Any]


def kinds_of(schema: object, root: Schema) -> frozenset[str]:
    """The kinds, `ALL` where the schema does not say. References are looked up in `root`."""
    return _kinds_of(schema, root, {})


def _kinds_of(schema: object, root: Schema, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """Each reference is looked up once, however often it stands there: `known` has those that were."""
    if not isinstance(schema, dict):
        return ALL
    found = _named(schema.get("type"))
    if isinstance(schema.get("enum"), list):
        found &= _of_values(schema["enum"])
    if "const" in schema:
        found &= _of_values([schema["const"]])
    if isinstance(schema.get("$ref"), str):
        found &= _of_reference(schema, root, known)
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list):
            found &= frozenset[str]().union(*(_kinds_of(one, root, known) for one in schema[name]))
    for one in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        found &= _kinds_of(one, root, known)
    return found


def _of_reference(schema: Schema, root: Schema, known: dict[str, frozenset[str]]) -> frozenset[str]:
    name = schema["$ref"]
    if name not in known:
        known[name] = ALL  # What refers to itself says nothing by that.
        known[name] = _kinds_of(resolved(schema, root), root, known)
    return known[name]


def resolved(schema: Schema, root: Schema) -> Any:
    """What a schema with a `$ref` within `root` refers to; None if that is nothing."""
    start, *names = str(schema["$ref"]).split("/")
    found: Any = root if start == "#" else None
    for name in names:
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def kind_of(value: object) -> str:
    """The kind of a JSON value."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def _named(given: object) -> frozenset[str]:
    """What a schema's `type` says."""
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else ALL
    found = frozenset(name for name in names if isinstance(name, str))
    return found | {"integer"} if "number" in found else found


def _of_values(values: Iterable[object]) -> frozenset[str]:
    return frozenset(kind for value in values for kind in _also(kind_of(value)))


def _also(kind: str) -> tuple[str, ...]:
    """JSON has one kind of numbers: 2.0 is an integer to a schema."""
    return ("integer", "number") if kind in ("integer", "number") else (kind,)
