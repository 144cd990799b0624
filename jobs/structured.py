"""What shape a request asks of its text: OpenAI's `response_format`, and `structured_outputs` with vLLM's names.

Knows nothing of how a shape is kept to: whether it can be is the worker's to say.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from .errors import UserError
from .invalid import whole_text
from .strict import JsonObject, Strict, missing

MAX_SHAPE_BYTES, MAX_CHOICES = 65_536, 1024
# vLLM's names of before, each now a field of `structured_outputs`.
RENAMED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}


def _short(value: str) -> str:
    if len(value.encode()) > MAX_SHAPE_BYTES:
        raise ValueError(f"it has {len(value.encode())} bytes, more than the {MAX_SHAPE_BYTES} allowed")
    return value


def _short_object(value: dict[str, Any]) -> dict[str, Any]:
    _short(json.dumps(value))
    return value


Shape = Annotated[str, Field(min_length=1), AfterValidator(whole_text), AfterValidator(_short)]
SchemaObject = Annotated[JsonObject, AfterValidator(_short_object)]
Choices = Annotated[list[Shape], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class JsonSchema(Strict):
    """A schema under a name. It is kept to whatever `strict` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    strict: bool | None = None
    json_schema: SchemaObject = Field(alias="schema")


class ResponseFormat(Strict):
    """Any text, any JSON object, or what a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _where_it_belongs(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        kind = info.data.get("type", "json_schema")
        if kind == "json_schema" and value is None:
            raise missing()
        if kind != "json_schema" and value is not None:
            raise ValueError(f"it belongs to the type 'json_schema', not to '{kind}'")
        return value


class StructuredOutputs(Strict):
    """One of these: a JSON schema as an object or as text, any JSON object, a regex, some texts, or a Lark grammar."""

    json_shape: Shape | SchemaObject | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: Shape | None = None
    choice: Choices | None = None
    grammar: Shape | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        num_given = sum(value is not None for _, value in self)
        if num_given != 1:
            raise ValueError(f"it takes one of json, json_object, regex, choice and grammar, not {num_given} of them")
        return self


class Structured(Strict):
    """The fields of a request."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("structured_outputs")
    @classmethod
    def _one_shape(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        other = info.data.get("response_format")
        if value is not None and other is not None and other.type != "text":
            raise ValueError("'response_format' asks for a shape too: leave one out")
        return value


def refuse_old_names(body: dict[str, Any]) -> None:
    """Raises UserError that says what to write instead."""
    for old, name in RENAMED.items():
        if body.get(old) is not None:
            message = f"'{old}' is not supported; use 'structured_outputs': {{'{name}': …}} instead."
            raise UserError(message, param=old, code="unsupported_parameter")
