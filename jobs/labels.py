"""Fields of OpenAI's that say something about a request and change nothing in its answer.

They are checked, so that what OpenAI would refuse is refused; what would promise something is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from .invalid import whole_text
from .strict import Strict, Text

LABELS = {
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip


def _few(value: Any) -> Any:
    """The same. Counted before pydantic looks at the entries, of which a million may be wrong."""
    if isinstance(value, dict) and len(value) > 16:
        raise ValueError(f"it has {len(value)} properties, and at most 16 are allowed")
    return value


def _short(value: dict[str, str]) -> dict[str, str]:
    long = next((key for key, text in value.items() if len(key) > 64 or len(text) > 512), None)
    if long is not None:
        raise ValueError("its keys have at most 64 characters and its values at most 512")
    return value


class Labels(Strict):
    """Nobody's concern but the client's."""

    metadata: Annotated[dict[Text, Text], BeforeValidator(_few), AfterValidator(_short)] | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: Annotated[str, Field(max_length=64), AfterValidator(whole_text)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool = False

    @field_validator("store")
    @classmethod
    def _not_stored(cls, value: bool) -> bool:
        if value:
            raise ValueError("answers are not stored to be retrieved later: leave it out")
        return value

    @field_validator("service_tier", mode="before")
    @classmethod
    def _one_tier(cls, value: Any) -> Any:
        if value in ("flex", "priority", "scale"):
            raise ValueError(f"there is no tier '{value}' here; 'priority' says which requests run first")
        return value
