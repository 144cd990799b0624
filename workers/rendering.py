"""How a conversation is written down for a model, beside its messages. Plain data, which a tokenizer is given.

Knows nothing of requests, so that an engine's process can do without what reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How a conversation is written down: with which tools, by which template (None: the model's), how it ends."""

    tools: Sequence[Mapping[str, Any]] = ()
    template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


PLAINLY = Rendering()
