"""What a request may ask (embeddings: `embeddings.py`): its fields, their ranges, and clear refusals for the rest.

The fields are OpenAI's, and vLLM's beyond them. What Pressrun does not do yet is refused by name, so that no option is
taken and ignored. Knows nothing of models: whether a prompt fits is the worker's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from .constraints import MAX_INT, AllowedTokenIds, BadWords, LogitBias, TokenIds
from .embeddings import EmbeddingRequest
from .errors import UserError
from .generation import NEUTRAL, MinP, RepetitionPenalty, Temperature, TopK, TopP
from .invalid import invalid_type, whole_text
from .labels import Labels
from .messages import Message
from .records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from .response_requests import in_own_terms, parse_responses
from .strict import Strict, Text, parsed
from .structured import Structured, refuse_old_names
from .templated import Templated
from .tools import Tooled

UNBUILT = {
    "audio", "documents", "function_call", "functions", "length_penalty", "logits_processors",
    "mm_processor_kwargs", "moderation", "prediction", "prompt_cache_options",
    "suffix", "truncate_prompt_tokens", "use_beam_search", "web_search_options",
}  # fmt: skip
INSTEAD = {"functions": "tools", "function_call": "tool_choice"}
MAX_PROMPTS = 2048
MAX_PRIORITY = 100
Stop = Annotated[list[Annotated[str, Field(min_length=1), AfterValidator(whole_text)]], Field(max_length=16)]
T = TypeVar("T")
Prompts = Annotated[list[T], Field(max_length=MAX_PROMPTS, fail_fast=True)]


class StreamOptions(Strict):
    """What a stream holds beside the choices. Obfuscation would only make chunks longer: there is none."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(Structured):
    """What chat and completions have in common."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = Field([])
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: LogitBias = Field({})
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text | None = None

    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    min_tokens: int = Field(0, ge=0, le=MAX_INT)
    ignore_eos: bool = False
    stop_token_ids: TokenIds = Field([], max_length=128)
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords = Field([])
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    prompt_logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("it is only for requests with 'stream': true")
        return value

    @field_validator("min_tokens")
    @classmethod
    def _below_max(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_tokens")
        if most is not None and value > most:
            raise ValueError(f"{value} is larger than max_tokens ({most})")
        return value


class ChatCompletionRequest(Sampled, Templated, Tooled, Labels):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1, fail_fast=True)] | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _above_min(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("min_tokens", 0):
            raise ValueError(f"{value} is smaller than min_tokens ({info.data['min_tokens']})")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs", True):
            raise ValueError("it needs 'logprobs' to be true")
        return value

    @field_validator("messages")
    @classmethod
    def _continues_the_assistant(cls, value: list[Message], info: ValidationInfo) -> list[Message]:
        if info.data.get("continue_final_message") and value[-1].role != "assistant":
            raise ValueError("with 'continue_final_message' the last one must be of role 'assistant'")
        return value

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

    # 0: the prompt is only read, and scored if that is asked for.
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT)
    prompt: Text | Prompts[Text] | TokenIds | Prompts[TokenIds]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=128)
    add_special_tokens: bool = True

    @field_validator("best_of")
    @classmethod
    def _all_of_them(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != info.data.get("n", value):
            raise ValueError("only as many as 'n' are supported: leave it out")
        return value

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


Request = ChatCompletionRequest | CompletionRequest | EmbeddingRequest
BODIES: Mapping[str, type[ChatCompletionRequest] | type[CompletionRequest] | type[EmbeddingRequest]] = {
    CHAT: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    EMBEDDINGS: EmbeddingRequest,
}


def parse_body(endpoint: str, body: object, sampling: Mapping[str, float] = NEUTRAL) -> Request:
    """The request in `body`, sent to an endpoint; of `/v1/responses` the chat request that asks the same.

    What it leaves out of the `sampling` is as given there: who does not know the model's own only checks a request.
    Raises UserError that names the field and the fix.
    """
    if endpoint == RESPONSES:
        return _as_chat(body, sampling)
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    refuse_old_names(body)
    given = {name: value for name, value in body.items() if value is not None}
    for name in given.keys() & UNBUILT:
        fix = f"use '{INSTEAD[name]}'" if name in INSTEAD else "remove it"
        raise UserError(f"'{name}' is not supported; {fix}.", param=name, code="unsupported_parameter")
    try:
        return parsed(BODIES[endpoint], given if endpoint == EMBEDDINGS else {**sampling, **given})
    except UserError as error:
        raise _in_openais_words(error, given) from error


def _as_chat(body: object, sampling: Mapping[str, float]) -> Request:
    asked = parse_responses(body)
    try:
        return parse_body(CHAT, asked.as_chat(), sampling)
    except UserError as error:
        raise in_own_terms(error) from error


def _in_openais_words(error: UserError, given: Mapping[str, Any]) -> UserError:
    """The same error; of a field that is unknown at the top OpenAI says so in other words."""
    if error.code != "unknown_parameter" or error.param not in given:
        return error
    return UserError(f"Unrecognized request argument supplied: {error.param}", param=error.param, code=error.code)
