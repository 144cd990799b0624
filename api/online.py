"""OpenAI's routes that answer on their connection, whole or as a stream: chats, completions, responses, embeddings.

The rules of a request are `jobs/requests.py`'s, and the same as in a batch line. That a client goes away is noticed
while its answer is waited for, and its request is stopped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..jobs.embeddings import EmbeddingRequest
from ..jobs.errors import UserError
from ..jobs.estimates import line_tokens
from ..jobs.invalid import whole_text
from ..jobs.records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from ..jobs.requests import ChatCompletionRequest, CompletionRequest, parse_body
from ..jobs.response_requests import parse_responses
from .calls import Calls, Pending
from .chunks import Chunks, Events
from .deps import TenantDep
from .response_events import ResponseEvents
from .results import EVENTS
from .timing import RECEIVED, server_timing

router = APIRouter(tags=["online"])
T = TypeVar("T")

ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; a stream of events if `stream` is true.",
        "content": {"application/json": {"schema": {"type": "object"}}, EVENTS: {"schema": {"type": "string"}}},
    }
}
WHOLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer.", "content": {"application/json": {"schema": {"type": "object"}}}}
}
JsonBody = Annotated[dict[str, Any], Body(description="OpenAI's request, and vLLM's fields beyond it.")]
COMMENT = b": keep-alive\n\n"
MakeEvents = Callable[[Mapping[str, float]], Events]  # Told how its worker draws what a request says nothing of.
CLIENT_GONE = 499  # nginx's status for an answer that nobody waits for; it goes to the log only.


class ClientGone(Exception):
    """The connection was closed before the answer was complete."""


@router.post(CHAT, response_class=Response, responses=ANSWER)
async def create_chat_completion(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """Answer a conversation now, ahead of all batches; with `stream` piece by piece."""
    return await _serve(request, CHAT, body, tenant)


@router.post(COMPLETIONS, response_class=Response, responses=ANSWER)
async def create_completion(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """Complete a text, or several, now, ahead of all batches; with `stream` piece by piece."""
    return await _serve(request, COMPLETIONS, body, tenant)


@router.post(RESPONSES, response_class=Response, responses=ANSWER)
async def create_response(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """Answer with OpenAI's `response` object now, or with its events: text that keeps no state."""
    return await _serve(request, RESPONSES, body, tenant)


@router.post(EMBEDDINGS, response_class=Response, responses=WHOLE)
async def create_embeddings(request: Request, body: JsonBody, tenant: TenantDep) -> Response:
    """Vectors for a text, or for several, now, ahead of all batches."""
    return await _serve(request, EMBEDDINGS, body, tenant)


async def _serve(request: Request, url: str, body: dict[str, Any], tenant: str) -> Response:
    asked = parse_body(url, body)
    tokens = math.ceil(line_tokens(url, body).asked)
    events = _events(url, body, asked) if asked.stream and not isinstance(asked, EmbeddingRequest) else None
    return await answer_of(
        request, url, asked.model, body, tenant, tokens=tokens, priority=asked.priority, events=events
    )


def _events(url: str, body: dict[str, Any], asked: ChatCompletionRequest | CompletionRequest) -> MakeEvents:
    if url == RESPONSES:
        return partial(ResponseEvents, parse_responses(body))
    return lambda sampling: Chunks(url, asked)


async def answer_of(
    request: Request,
    url: str,
    model: str,
    body: dict[str, Any],
    tenant: str,
    *,
    tokens: int = 0,
    priority: int = 0,
    events: MakeEvents | None = None,
) -> Response:
    """What a worker of the model answers: whole, or as a stream of `events` from its first token on."""
    calls: Calls = request.app.state.calls
    pending = await calls.ask(url, _known_text(model), body, tenant=tenant, tokens=tokens, priority=priority)
    try:
        await while_there(request.receive, pending.wait())
        if events is not None:
            return EventStream(pending, events(pending.sampling), calls, _timing(request, pending))
    except ClientGone:
        return _ended(calls, pending, Response(status_code=CLIENT_GONE))
    except BaseException:
        calls.end(pending)
        raise
    assert pending.result is not None
    return _ended(calls, pending, JSONResponse(pending.result[1], headers=_timing(request, pending)))


class EventStream(Response):
    """An answer that goes out as it comes."""

    media_type = EVENTS

    def __init__(self, pending: Pending, chunks: Events, calls: Calls, headers: dict[str, str]) -> None:
        # nginx would gather events otherwise.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | headers)
        del self.headers["content-length"]
        self._pending, self._chunks, self._calls = pending, chunks, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_there(receive, self._send(send))
        except ClientGone:
            return
        finally:
            self._calls.end(self._pending)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pending = self._pending
        while True:
            ended = pending.has_ended
            events = self._chunks.events(pending.rows.take())
            if ended:
                error, chunks = pending.error, self._chunks
                events += chunks.end(pending.usage) if error is None else chunks.failed(error)
            await send({"type": "http.response.body", "body": events, "more_body": not ended})
            if ended:
                return
            await self._wait(send)

    async def _wait(self, send: Send) -> None:
        """Until there is more to send; meanwhile a comment now and then, so that nothing on the way hangs up."""
        while True:
            try:
                async with asyncio.timeout(self._calls.keep_alive_s):
                    await self._pending.wait()
                    return
            except TimeoutError:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to, or ClientGone as soon as the client is; the work is cancelled then."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _ended(calls: Calls, pending: Pending, response: Response) -> Response:
    calls.end(pending)
    return response


def _timing(request: Request, pending: Pending) -> dict[str, str]:
    received_at: float = request.scope["state"][RECEIVED]
    return server_timing(received_at, pending.asked_at, pending.heard_at, pending.phases)


def _known_text(model: str) -> str:
    """A model's name, if it can be one."""
    try:
        return whole_text(model)
    except ValueError as error:
        raise UserError(f"Invalid value for 'model': {error}.", param="model", code="invalid_value") from error
