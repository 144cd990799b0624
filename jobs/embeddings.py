"""What an embeddings request may ask: OpenAI's fields, their ranges, and clear refusals for the rest.

Knows nothing of models: whether one gives embeddings, how long they are and what fits is the worker's to say.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from .constraints import MAX_INT, TokenIds
from .strict import Strict, Text

MAX_INPUTS = 2048
Texts = Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
ManyTokenIds = Annotated[list[TokenIds], Field(max_length=MAX_INPUTS, fail_fast=True)]


class EmbeddingRequest(Strict):
    """The body of `/v1/embeddings`."""

    n: ClassVar[int] = 1  # Each input has one answer.
    stream: ClassVar[bool] = False
    priority: ClassVar[int] = 0

    model: str
    input: Text | Texts | TokenIds | ManyTokenIds
    dimensions: int | None = Field(None, ge=1, le=MAX_INT)
    encoding_format: Literal["float", "base64"] = "float"
    user: Text | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and any(one in ("", []) for one in value)):
            raise ValueError("it must not be empty, and neither must any of its parts")
        return value
