"""`/v1/batches/{batch_id}/results`: a batch's results as they come, in pages or as a stream of events.

A cursor is a number of lines: who has read N of them goes on after N, and gets each once whatever happens in between.
The rules are `jobs/results.py`'s.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ..jobs.errors import UserError
from ..jobs.results import ResultPage
from .deps import TenantDep
from .errors import AWAY
from .waiting import Waiting

router = APIRouter(prefix="/v1/batches", tags=["batches"])
log = logging.getLogger("pressrun.api")

EVENTS = "text/event-stream"
DEFAULT_LIMIT, MAX_LIMIT, MAX_WAIT_S = 1000, 10_000, 60
HEARTBEAT_S = 15.0


class ResultQuery(BaseModel):
    """Where to go on, and how long to wait for what is not there yet."""

    model_config = ConfigDict(extra="forbid")

    after_line: int = Field(0, ge=0, description="How many lines have been read: the answer begins behind them.")
    limit: int | None = Field(None, ge=1, le=MAX_LIMIT, description="Most lines of one answer; 1000 if not given.")
    wait: int | None = Field(None, ge=0, le=MAX_WAIT_S, description="Seconds to wait where no line is there yet.")


@router.get(
    "/{batch_id}/results",
    response_class=Response,
    responses={200: {"description": "Finished lines.", "content": {"application/jsonl": {}, EVENTS: {}}}},
)
async def batch_results(
    batch_id: str,
    query: Annotated[ResultQuery, Query()],
    request: Request,
    tenant: TenantDep,
    accept: Annotated[str, Header(description=f"`{EVENTS}` for a stream of events.")] = "",
    last_event_id: Annotated[str | None, Header(description="Where a stream of events goes on.")] = None,
) -> Response:
    """A batch's finished lines, while it runs and after. `after_line` says how many have been read."""
    waiting: Waiting = request.app.state.waiting
    if EVENTS in accept:
        after = _stream_start(query, last_event_id)
        page = await waiting.page(
            batch_id, after, DEFAULT_LIMIT, tenant
        )  # Before the answer begins: it may be an error.
        return StreamingResponse(
            _events(waiting, batch_id, page, tenant), media_type=EVENTS, headers={"Cache-Control": "no-cache"}
        )
    page = await _first_page(waiting, batch_id, query, tenant)
    headers = {
        "Pressrun-After-Line": str(page.next),
        "Pressrun-Has-More": "false" if page.is_last else "true",
        "Pressrun-Status": page.missing.status,
    }
    return Response(b"".join(line + b"\n" for line in page.lines), media_type="application/jsonl", headers=headers)


async def _first_page(waiting: Waiting, batch_id: str, query: ResultQuery, tenant: str) -> ResultPage:
    """The first page with a line in it, or what there is when the time is up."""
    deadline = time.monotonic() + (query.wait or 0)
    while True:
        page = await waiting.page(batch_id, query.after_line, query.limit or DEFAULT_LIMIT, tenant)
        left = deadline - time.monotonic()
        if page.lines or page.is_last or left <= 0 or not await waiting.wait(page.missing, left):
            return page


async def _events(waiting: Waiting, batch_id: str, page: ResultPage, tenant: str) -> AsyncIterator[bytes]:
    """Every line as an event with the cursor behind it as its id; a comment now and then; `done` at the end.

    Where the store goes away the stream ends without `done`, and a client comes again with its last id.
    """
    try:
        while True:
            for at, line in enumerate(page.lines, start=page.next - len(page.lines) + 1):
                yield b"id: %d\ndata: %s\n\n" % (at, line)
            if page.is_last:
                break
            if not page.lines:
                while not await waiting.wait(page.missing, HEARTBEAT_S):
                    yield b": still running\n\n"
            page = await waiting.page(batch_id, page.next, DEFAULT_LIMIT, tenant)
    except AWAY as error:
        log.warning("results of %s: a stream ends, because the store is not available: %s", batch_id, error)
        return
    end = json.dumps({"batch_id": batch_id, "lines": page.next}).encode()
    yield b"id: %d\nevent: done\ndata: %s\n\n" % (page.next, end)


def _stream_start(query: ResultQuery, last_event_id: str | None) -> int:
    for name, value in (("limit", query.limit), ("wait", query.wait)):
        if value is not None:
            message = f"'{name}' is for pages; a stream of events goes on to the batch's end. Remove it."
            raise UserError(message, param=name, code="unsupported_parameter")
    if last_event_id is None:
        return query.after_line
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise UserError(
            "Invalid value for 'Last-Event-ID': expected the id of an event, a number of lines.",
            param="Last-Event-ID",
            code="invalid_value",
        )
    return int(last_event_id)
