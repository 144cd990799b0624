"""The outermost layer of the app: a request id for every answer, a limit on every body, a 500 for every surprise.

A body is counted as it arrives, whatever it declares, so that none can fill the memory or the disk. Knows no route
but those that take files.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs.errors import UserError
from ..jobs.ids import new_id
from ..jobs.settings import Settings
from ..jobs.uploads import MAX_PART_BYTES
from .errors import Refused, error_response

log = logging.getLogger("pressrun.api")

UPLOAD_PATH = "/v1/files"
PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
FRAMING = 64 * 2**10  # What multipart's headers and fields, or the JSON around a line, may add.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The largest body that a path takes, in bytes, and the refusal of a larger one."""

    size: int
    setting: str
    code: str
    param: str | None = None

    def check(self, size: int) -> None:
        if size > self.size + FRAMING:
            message = f"The request is larger than {self.size} bytes ({self.setting})."
            # The rest of the body is not read: the connection is of no more use.
            raise Refused(UserError(message, param=self.param, code=self.code, status=413), {"Connection": "close"})


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.upload = Limit(
            size=settings.max_file_bytes,
            setting="PRESSRUN_MAX_FILE_BYTES",
            code="file_too_large",
            param="file",
        )
        self.part = Limit(size=MAX_PART_BYTES, setting="the most for a part", code="file_too_large", param="data")
        self.other = Limit(size=settings.max_line_bytes, setting="PRESSRUN_MAX_LINE_BYTES", code="request_too_large")

    def _limit(self, path: str) -> Limit:
        if path == UPLOAD_PATH:
            return self.upload
        return self.part if PART_PATH.fullmatch(path) else self.other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = new_id("req_")
        limit = self._limit(scope["path"])
        received, started = 0, False

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            limit.check(received)
            return message

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            limit.check(int(Headers(scope=scope).get("content-length", 0)))
            await self.app(scope, receive_some, send_named)
        except Refused as refused:
            await error_response(refused.error, refused.headers)(scope, receive, send_named)
        except Exception:
            log.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if started:
                raise  # The server cuts the connection, so that nobody takes a part for the whole.
            message = f"The server had an error. Its log tells more under {request_id}."
            error = UserError(message, code="internal_error", status=500)
            await error_response(error)(scope, receive, send_named)
