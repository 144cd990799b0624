"""What may be asked of a model's tokenizer alone: `/tokenize` and `/detokenize`, in vLLM's shapes.

Knows nothing of tokenizers: what a prompt or conversation comes to is a worker's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .embeddings import EmbeddingRequest
from .errors import UserError
from .invalid import invalid_type, user_error
from .records import CHAT, COMPLETIONS
from .requests import ChatCompletionRequest, CompletionRequest, Text, TokenIds, parse_body

M = TypeVar("M", bound=BaseModel)
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
OWN_FIELDS = ("add_special_tokens", "return_token_strs")


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class Detokenize(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Text
    tokens: TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """The body of `/tokenize`: a text, or a conversation as a chat request would have it.

    Without `add_special_tokens` nothing is put around a text. With `return_token_strs` each token's text is told too.
    """

    body: ChatCompletionRequest | CompletionRequest
    add_special_tokens: bool
    return_token_strs: bool

    @property
    def model(self) -> str:
        return self.body.model


def parse_tokenize(body: object) -> Tokenize:
    """The request in `body`. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    options = _validated(_Options, {name: body[name] for name in OWN_FIELDS if body.get(name) is not None})
    rest = {name: value for name, value in body.items() if name not in OWN_FIELDS}
    if "messages" in rest:
        if options.add_special_tokens:
            message = "'add_special_tokens' is for a prompt: a chat template puts them in by itself. Remove it."
            raise UserError(message, param="add_special_tokens", code="unsupported_parameter")
        request = parse_body(CHAT, rest)
    else:
        request = parse_body(COMPLETIONS, rest)
        if not isinstance(rest["prompt"], str):
            raise invalid_type("prompt", "a string", rest["prompt"])
    assert not isinstance(request, EmbeddingRequest)
    return Tokenize(
        body=request,
        add_special_tokens=options.add_special_tokens is not False,
        return_token_strs=options.return_token_strs,
    )


def parse_detokenize(body: object) -> Detokenize:
    """The request in `body`. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    return _validated(Detokenize, body)


def _validated(kind: type[M], fields: dict[str, Any]) -> M:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise user_error(error.errors(include_url=False)) from error
