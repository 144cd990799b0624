"""What may be asked of a model's tokenizer alone: `/tokenize` and `/detokenize`, in vLLM's shapes.

Knows nothing of tokenizers: what a prompt or conversation comes to is a worker's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constraints import TokenIds
from .embeddings import EmbeddingRequest
from .invalid import invalid_type
from .records import CHAT, COMPLETIONS
from .requests import ChatCompletionRequest, CompletionRequest, parse_body
from .strict import Strict, Text, parsed

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


class _Options(Strict):
    return_token_strs: bool = False


class Detokenize(Strict):
    """The body of `/detokenize`."""

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
    own = parsed(_Options, {name: body[name] for name in _Options.model_fields if name in body})
    rest = {name: value for name, value in body.items() if name not in _Options.model_fields}
    request = parse_body(CHAT if "messages" in rest else COMPLETIONS, rest)
    if isinstance(request, CompletionRequest) and not isinstance(request.prompt, str):
        raise invalid_type("prompt", "a string", request.prompt)
    assert not isinstance(request, EmbeddingRequest)
    return Tokenize(body=request, return_token_strs=own.return_token_strs)


def parse_detokenize(body: object) -> Detokenize:
    """The request in `body`. Raises UserError that names the field and the fix."""
    return parsed(Detokenize, body)
