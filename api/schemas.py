"""What the API answers with, whatever it is asked: lists and errors; and models, tokens and its own health.

Files, batches, jobs and webhooks have modules of their own. Every field is always there, null where there is nothing to
say. Knows nothing of Redis.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from ..jobs.generation import NO_DEFAULTS
from ..jobs.records import ModelCard

T = TypeVar("T", bound="Identified")


class Identified(BaseModel):
    """Whatever a list can hold."""

    id: str


class ListOf(BaseModel, Generic[T]):
    """One page of a list; `last_id` is the `after` of the next one."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[T], has_more: bool) -> ListOf[T]:
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


class ErrorFields(BaseModel):
    """What is wrong, with which parameter, and OpenAI's short name for the case."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer of 400 and above."""

    error: ErrorFields


class DefaultSampling(BaseModel):
    """What holds for the fields that a request leaves out.

    `max_tokens` is for chats and responses; null: what fits. No answer is longer than `max_tokens_limit`; null:
    no limit.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int | None
    max_tokens_limit: int | None


class ModelExtension(BaseModel):
    """What OpenAI's object has no place for; null: its worker does not say."""

    default_sampling: DefaultSampling | None


class ModelObject(Identified):
    """A model that a live worker serves; prompt and answer together have at most `max_model_len` tokens."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pressrun"
    max_model_len: int
    pressrun: ModelExtension

    @classmethod
    def of(cls, card: ModelCard) -> ModelObject:
        said = card.default_sampling
        # A worker of another version may say more or less.
        sampling = None if said is None else DefaultSampling.model_validate(NO_DEFAULTS.shown() | dict(said))
        extension = ModelExtension(default_sampling=sampling)
        return cls(id=card.id, created=card.created, max_model_len=card.max_model_len, pressrun=extension)


class ModelList(BaseModel):
    """All models; this list has no pages."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Tokenized(BaseModel):
    """The tokens of a prompt; `token_strs` only where it is asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class Health(BaseModel):
    """Whether this server can do its work: `models` are served now, `active` batches and jobs have not ended."""

    status: Literal["ok", "unavailable"]
    version: str
    redis: Literal["ok", "unreachable"]
    models: list[str]
    active: int | None
