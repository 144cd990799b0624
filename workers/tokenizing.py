"""What `/tokenize` and `/detokenize` are answered with, by the tokenizer alone. Knows nothing of engines."""

from __future__ import annotations

from typing import Any

from ..jobs.errors import UserError
from ..jobs.lines import answered, refused
from ..jobs.records import Line, LineResult, Usage
from ..jobs.tokenizing import DETOKENIZE, TOKENIZE, parse_detokenize, parse_tokenize
from .prompts import Prompts

URLS = (TOKENIZE, DETOKENIZE)


def tokenizer_result(line: Line, prompts: Prompts) -> LineResult:
    """How a request ends that needs no engine."""
    try:
        body = _tokenized(line, prompts) if line.url == TOKENIZE else _detokenized(line, prompts)
    except UserError as error:
        return refused(line, error)
    return answered(line, body, Usage())


def _tokenized(line: Line, prompts: Prompts) -> dict[str, Any]:
    asked = parse_tokenize(line.body)
    tokens = list(prompts.tokens(asked.body)[0])
    strings = [prompts.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    return {
        "count": len(tokens),
        "max_model_len": prompts.info.max_model_len,
        "tokens": tokens,
        "token_strs": strings if asked.return_token_strs else None,
    }


def _detokenized(line: Line, prompts: Prompts) -> dict[str, Any]:
    asked = parse_detokenize(line.body)
    prompts.known(asked.tokens, "tokens")
    return {"prompt": prompts.tokenizer.decode(asked.tokens, skip_special_tokens=False)}
