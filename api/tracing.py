"""A span for every request, in its caller's trace if it names one; what the request creates belongs to it.

Off unless `PRESSRUN_OTLP_ENDPOINT` is set. Knows nothing of what a request does.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs.backend import Backend
from ..jobs.traces import SERVED, Place, Span, Traces, Value, new_place, parse_traceparent
from .metrics import UNKNOWN, route_of

UNTRACED = {"/health", "/metrics"}  # Asked for all the time, by machines.


class Traced:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        backend: Backend | None = None
        if scope["type"] == "http" and scope["path"] not in UNTRACED:
            backend = scope["app"].state.backend
        if backend is None or not backend.traces.is_on:
            return await self.app(scope, receive, send)
        caller = parse_traceparent(Headers(scope=scope).get("traceparent"))
        place = new_place() if caller is None else caller.below()
        started_ns, status = time.time_ns(), 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = SERVED.set(place)
        try:
            await self.app(scope, receive, send_noted)
        finally:
            SERVED.reset(token)
            _tell(backend.traces, scope, place, caller, started_ns, status)


def _tell(traces: Traces, scope: Scope, place: Place, caller: Place | None, started_ns: int, status: int) -> None:
    route = route_of(scope)
    attributes: dict[str, Value] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "http.route": route,
        "http.response.status_code": status,
    }
    traces.tell(
        Span(
            name=scope["method"] if route == UNKNOWN else f"{scope['method']} {route}",
            place=place,
            parent=caller,
            start_ns=started_ns,
            end_ns=time.time_ns(),
            kind="server",
            attributes=attributes,
            error=None if 0 < status < 500 else "the request failed" if status else "the client was not answered",
        )
    )
