"""What an embeddings request may ask: OpenAI's fields, their ranges, and clear refusals for the rest.

Knows nothing of models: whether one gives embeddings, how long they are and what fits is the worker's to say.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from .constraints import MAX_INT
from .invalid import whole_text

MAX_INPUTS = 2048
Text = Annotated[str, AfterValidator(whole_text)]
# The first finding is enough: a line of a million wrong elements must not become a million findings.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_INT)]], Field(fail_fast=True)]
Texts = Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
ManyTokenIds = Annotated[list[TokenIds], Field(max_length=MAX_INPUTS, fail_fast=True)]


class EmbeddingRequest(BaseModel):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    n: ClassVar[int] = 1  # Each input has one answer.
    stream: ClassVar[bool] = False
    priority: ClassVar[int] = 0

    model: str
    input: Text | Texts | TokenIds | ManyTokenIds
    dimensions: int | None = Field(None, ge=1, le=MAX_INT)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and any(one in ("", []) for one in value)):
            raise ValueError("it must not be empty, and neither must any of its parts")
        return value
