"""What may be asked of a model's tokenizer alone: `/tokenize` and `/detokenize`, in vLLM's shapes.

Knows nothing of tokenizers: what a prompt or conversation comes to is a worker's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .embeddings import EmbeddingRequest
from .invalid import invalid_type, user_error
from .records import CHAT, COMPLETIONS
from .requests import ChatCompletionRequest, CompletionRequest, TokenIds, parse_body
from .strict import Text

M = TypeVar("M", bound=BaseModel)
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    return_token_strs: bool = False


class Detokenize(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Text
    tokens: TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """The body of `/tokenize`: a text as a completion would have it, or a conversation as a chat request would.

    With `return_token_strs` each token's text is told too.
    """

    body: ChatCompletionRequest | CompletionRequest
    return_token_strs: bool

    @property
    def model(self) -> str:
        return self.body.model


def parse_tokenize(body: object) -> Tokenize:
    """The request in `body`. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    own = _validated(_Options, {name: body[name] for name in _Options.model_fields if body.get(name) is not None})
    rest = {name: value for name, value in body.items() if name not in _Options.model_fields}
    request = parse_body(CHAT if "messages" in rest else COMPLETIONS, rest)
    if isinstance(request, CompletionRequest) and not isinstance(request.prompt, str):
        raise invalid_type("prompt", "a string", request.prompt)
    assert not isinstance(request, EmbeddingRequest)
    return Tokenize(body=request, return_token_strs=own.return_token_strs)


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
