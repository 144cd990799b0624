"""What a request may ask (embeddings: `embeddings.py`): its fields, their ranges, and clear refusals for the rest.

The fields are OpenAI's, and vLLM's beyond them. What Pressrun does not do yet is refused by name, so that no option is
taken and ignored. Knows nothing of models: whether a prompt fits is the worker's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .constraints import MAX_INT, AllowedTokenIds, BadWords, LogitBias
from .embeddings import EmbeddingRequest
from .errors import UserError
from .invalid import invalid_type, user_error, whole_text
from .records import CHAT, COMPLETIONS, EMBEDDINGS
from .structured import Structured, refuse_old_names

UNBUILT = {
    "audio", "best_of", "function_call", "functions", "modalities", "parallel_tool_calls", "prediction",
    "reasoning_effort", "suffix", "tool_choice", "tools", "verbosity",
    "web_search_options",
}  # fmt: skip
MAX_PROMPTS, MAX_FIELDS = 2048, 100
Text = Annotated[str, AfterValidator(whole_text)]
Stop = Annotated[list[Annotated[str, Field(min_length=1), AfterValidator(whole_text)]], Field(max_length=16)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# The first finding is enough: a line of a million wrong elements must not become a million findings.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
T = TypeVar("T")
Prompts = Annotated[list[T], Field(max_length=MAX_PROMPTS, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object here has at most {MAX_FIELDS} fields, not {len(value)}")
        return value


class TextPart(_Strict):
    """One piece of a message's content."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Text | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """What a stream holds beside the choices. Obfuscation would only make chunks longer: there is none."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(_Strict, Structured):
    """What chat and completions have in common."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = []
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: LogitBias = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: int = Field(0, ge=-1, le=MAX_INT)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    min_tokens: int = Field(0, ge=0, le=MAX_INT)
    ignore_eos: bool = False
    stop_token_ids: TokenIds = Field([], max_length=128)
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords = []
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _min_below_max(self) -> Sampled:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        return self

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("it is only for requests with 'stream': true")
        return value


class ChatCompletionRequest(Sampled):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to write; None: what fits."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampled):
    """The body of `/v1/completions`."""

    prompt: Text | Prompts[Text] | TokenIds | Prompts[TokenIds]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and [] in value):
            raise ValueError("it must not be empty")
        return value

    @property
    def limit(self) -> int | None:
        """Most tokens to write; OpenAI's default for completions is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None for no log-probabilities."""
        return self.logprobs


BODIES: Mapping[str, type[ChatCompletionRequest] | type[CompletionRequest] | type[EmbeddingRequest]] = {
    CHAT: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    EMBEDDINGS: EmbeddingRequest,
}


def parse_body(endpoint: str, body: object) -> ChatCompletionRequest | CompletionRequest | EmbeddingRequest:
    """The request in `body`, for one of `BODIES`' endpoints. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    refuse_old_names(body)
    for name in body.keys() & UNBUILT:
        if body[name] is not None:
            raise UserError(f"'{name}' is not supported yet; remove it.", param=name, code="unsupported_parameter")
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return BODIES[endpoint].model_validate(given)
    except ValidationError as error:
        raise user_error(error.errors(include_url=False)) from error
