"""What all request models have in common: no unknown field, no conversion of types, no text that UTF-8 cannot carry.

Knows nothing of single fields.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from .invalid import whole_text

MAX_FIELDS = 100


def whole_json(value: Any) -> Any:
    """The same plain data. ValueError where a text in it holds half of a surrogate pair, or it is nested too deep."""
    try:
        whole_text(json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


Text = Annotated[str, AfterValidator(whole_text)]
JsonObject = Annotated[dict[str, Any], AfterValidator(whole_json)]


class Strict(BaseModel):
    """The base of what a client may send."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object here has at most {MAX_FIELDS} fields, not {len(value)}")
        return value


def missing() -> PydanticCustomError:
    """The error for a field that another one makes necessary, as pydantic reports one that always is."""
    return PydanticCustomError("missing", "Field required")


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
