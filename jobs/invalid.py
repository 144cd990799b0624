"""From pydantic's findings to OpenAI's error: the field's dotted name, what was expected, what came.

One place for the HTTP bodies and the bodies of batch lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UserError

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_GOT = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip


def user_error(errors: Sequence[Mapping[str, Any]], *, skip: int = 0) -> UserError:
    """The first of pydantic's `errors()` that says most, as a UserError. `skip` drops leading parts of its location."""
    first = min(errors, key=_rank)
    param = dotted(first["loc"][skip:])
    kind, value = str(first["type"]), first.get("input")
    if kind == "missing":
        return UserError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        param = ".".join(part for part in (dotted(first["loc"][skip:-1]), str(first["loc"][-1])) if part)
        return UserError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if kind in _EXPECTED:
        return invalid_type(param, _EXPECTED[kind], value)
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message if param is None else f"Invalid value for '{param}': {message[:1].lower()}{message[1:]}."
    return UserError(message.replace("..", "."), param=param, code="invalid_value")


def invalid_type(param: str | None, expected: str, value: object) -> UserError:
    """OpenAI's words for a value of the wrong type."""
    got = _GOT.get(type(value), "another type")
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return UserError(message, param=param, code="invalid_type")


def whole_text(value: str) -> str:
    """The same string. ValueError for half of a surrogate pair, which JSON can escape but UTF-8 cannot carry."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair") from error
    return value


def dotted(location: Sequence[int | str]) -> str | None:
    """`("messages", 0, "content")` as `messages[0].content`; names of union members are not part of it."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "list", "dict"):
            name += f".{part}" if name else part
    return name or None


def _rank(error: Mapping[str, Any]) -> tuple[bool, bool, int, bool]:
    """Unknown parameters are a detail beside a missing or mistyped one; of a union's findings the deepest says most.

    Where it fits the type of one member, what that member finds counts.
    """
    kind = str(error["type"])
    return (kind == "extra_forbidden", kind != "too_long", -len(error["loc"]), kind in _EXPECTED)
