"""`/tokenize` and `/detokenize`: vLLM's routes to a model's tokenizer, answered by a worker of the model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from ..jobs.tokenizing import DETOKENIZE, TOKENIZE, parse_detokenize, parse_tokenize
from .deps import TenantDep
from .online import answer_of
from .schemas import Detokenized, Tokenized

router = APIRouter(tags=["online"])
JsonBody = Annotated[dict[str, Any], Body(description="vLLM's request.")]


@router.post(TOKENIZE, response_model=Tokenized)
async def tokenize(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """The tokens of a `prompt`, or of `messages` as a chat request would have them."""
    return await answer_of(request, TOKENIZE, parse_tokenize(body).model, body, tenant)


@router.post(DETOKENIZE, response_model=Detokenized)
async def detokenize(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """The text of `tokens`, special ones with it."""
    return await answer_of(request, DETOKENIZE, parse_detokenize(body).model, body, tenant)
