"""What all request models have in common: no unknown field, no conversion of types, no text that UTF-8 cannot carry.

Knows nothing of single fields.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .invalid import invalid_type, user_error, whole_text

MAX_FIELDS = 100
MAX_DEPTH = 100  # Of arrays and objects in one another: llguidance, templates and JSON's writers all follow that far.
M = TypeVar("M", bound=BaseModel)


def whole_json(value: Any) -> Any:
    """The same plain data. ValueError where a text in it holds half of a surrogate pair, or it is nested too deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for one in level for inner in _inside(one)]
    if level:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    whole_text(json.dumps(value, ensure_ascii=False))
    return value


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


Text = Annotated[str, AfterValidator(whole_text)]
JsonObject = Annotated[dict[str, Any], AfterValidator(whole_json)]
Empty = Annotated[list[Any], Field(max_length=0)]  # Taken where answers have one, so that they can be sent back.


class Strict(BaseModel):
    """The base of what a client may send."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object here has at most {MAX_FIELDS} fields, not {len(value)}")
        return value


def parsed(kind: type[M], body: object) -> M:
    """What a client sent, as a request of this kind. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    try:
        return kind.model_validate({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        raise user_error(error.errors(include_url=False)) from error


def missing() -> PydanticCustomError:
    """The error for a field that another one makes necessary, as pydantic reports one that always is."""
    return PydanticCustomError("missing", "Field required")


def without_media(kinds: set[str]) -> BeforeValidator:
    """For the type of a content's part: those that a text model cannot read are refused by name."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in kinds:
            raise ValueError(f"'{value}' parts are not supported: the models here read only text")
        return value

    return BeforeValidator(check)


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a string spells; an empty one spells an empty object. ValueError if it is anything else."""
    try:
        value = json.loads(text or "{}", parse_constant=no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def no_constant(name: str) -> NoReturn:
    """For `json`, which takes NaN and Infinity otherwise."""
    raise ValueError(f"{name} is not JSON")
