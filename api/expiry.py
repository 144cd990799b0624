"""`expires_after` and `output_expires_after`, as JSON bodies say them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..jobs.submit import MAX_EXPIRY_S, MIN_EXPIRY_S


class ExpiresAfter(BaseModel):
    """How long a file is kept. Its time begins when the file is created."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(strict=True, ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


def seconds_of(expiry: ExpiresAfter | None) -> int | None:
    """How long a file is to be kept, where anybody has said so."""
    return None if expiry is None else expiry.seconds
