"""The part of a chat request that is about its chat template, in vLLM's names; and what OpenAI's models are told so.

Knows nothing of what a model's template knows: that is the worker's to say.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from .invalid import whole_text
from .strict import JsonObject, Strict

MAX_TEMPLATE = 2**16
# Each has a field of its own, or is Pressrun's to say.
RESERVED = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "reasoning_effort", "return_assistant_tokens_mask", "return_dict", "return_tensors",
        "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools", "truncation", "verbosity",
    }
)  # fmt: skip


Template = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE), AfterValidator(whole_text)]


class Templated(Strict):
    """How the conversation is written down for the model."""

    chat_template: Template | None = None
    chat_template_kwargs: JsonObject = Field({})
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_reserved(cls, value: dict[str, object]) -> dict[str, object]:
        name = next((name for name in value if name in RESERVED), None)
        if name is not None:
            raise ValueError(f"'{name}' cannot be given here")
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _one_of_both(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError("with it 'add_generation_prompt' must be false")
        return value

    @property
    def template_options(self) -> dict[str, object]:
        """What the template is told beside the messages and tools, by the names of its variables."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        # Medium is what a model does by itself, as in OpenAI's interface.
        length = {} if self.verbosity in (None, "medium") else {"verbosity": self.verbosity}
        return {**self.chat_template_kwargs, **effort, **length}
