"""How answers are drawn where a request does not say: the fields of a generation_config.json that count, checked.

Names and meanings are vLLM's. Knows nothing of files (a worker reads them), nor of requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, ValidationError

from .constraints import MAX_INT
from .errors import UserError
from .invalid import user_error
from .strict import Strict, json_object

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=MAX_INT)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]

# What goes without saying of a model that says nothing else.
NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


class GenerationConfig(Strict):
    """The fields that count; None: nothing is said."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds for the fields that a request leaves out.

    `sampling` has all names of `NEUTRAL`. `max_tokens` is for requests that have no limit of their own; no answer has
    more than `most_tokens`. None: what fits.
    """

    sampling: Mapping[str, float] = field(default_factory=lambda: dict(NEUTRAL))
    max_tokens: int | None = None
    most_tokens: int | None = None

    def shown(self) -> dict[str, Any]:
        """As users are told of them: all of them, by the names that requests have for them."""
        return {**self.sampling, "max_tokens": self.max_tokens, "max_tokens_limit": self.most_tokens}


NO_DEFAULTS = Defaults()


def parse_override(text: str) -> dict[str, Any]:
    """The fields in a JSON object; null takes one back. ValueError that names the field and the fix."""
    fields = json_object(text)
    try:
        checked(fields)
    except UserError as error:
        known = f" It may have {', '.join(GenerationConfig.model_fields)}." if error.code == "unknown_parameter" else ""
        raise ValueError(f"{error.message}{known}") from error
    return fields


def known_fields(text: str) -> dict[str, Any]:
    """The fields of a generation_config.json that count. ValueError if it is no JSON object.

    In others such files have NaN and Infinity, as Python writes them.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    return {name: value for name, value in fields.items() if name in GenerationConfig.model_fields}


def checked(fields: Mapping[str, Any]) -> GenerationConfig:
    """The same with values that are in their ranges. Raises UserError that names the field that is wrong."""
    try:
        return GenerationConfig.model_validate(fields)
    except ValidationError as error:
        raise user_error(error.errors(include_url=False)) from error


def defaults_of(config: GenerationConfig, *, most_tokens: int | None) -> Defaults:
    """What a configuration makes of the defaults."""
    given = config.model_dump(exclude_none=True)
    max_tokens = given.pop("max_new_tokens", None)
    return Defaults(sampling={**NEUTRAL, **given}, max_tokens=max_tokens, most_tokens=most_tokens)
