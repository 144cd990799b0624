"""Whatever goes wrong, as OpenAI's error object.

| what | answer |
|---|---|
| `UserError` and its kind | its own status and fields |
| what waiting mends, and what it does not | 401 with `WWW-Authenticate`, 429 and 409 with what the SDK should do |
| what pydantic finds in a request | 400, named as OpenAI names it |
| an unknown path or method, a body that cannot be read | 404, 405, 400 |
| Redis or the blob store away, loading, full or read-only | 503 with `Retry-After`: clients try again by themselves |
| anything else | 500 without its inner text, which goes to the log (`edge.py`) |
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from redis.exceptions import ResponseError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from ..jobs.away import PASSING, passes
from ..jobs.errors import (
    Conflict,
    InProgress,
    QuotaExceeded,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    Unavailable,
    UserError,
)
from ..jobs.invalid import invalid_type, user_error

log = logging.getLogger("pressrun.api")

AWAY: tuple[type[Exception], ...] = (*PASSING, StoreUnavailable)
RETRY_AFTER_S = 1
FILE_FIELDS = (("body", "file"), ("body", "data"))


class Refused(HTTPException):
    """A UserError that needs headers, or that is raised where Starlette lets only its own errors through."""

    def __init__(self, error: UserError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=error.status, detail=error.message, headers=headers)
        self.error = error


def install_error_handlers(app: FastAPI) -> None:
    """Make every error that reaches `app` an OpenAI error object."""
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    for away in AWAY:
        app.add_exception_handler(away, _on_away)
    app.add_exception_handler(ResponseError, _on_response_error)


def error_response(error: UserError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a client. JSON in ASCII, because a message may quote what no encoding can carry."""
    content = json.dumps(error.body()).encode()
    return Response(content, error.status, headers=headers, media_type="application/json")


async def _on_user_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return error_response(error, _headers(error))


def answer_to(error: Exception, scope: Scope) -> Response:
    """The answer to what was raised outside of the routes: a UserError, or one of `AWAY`."""
    return error_response(error, _headers(error)) if isinstance(error, UserError) else _away(scope, error)


def _headers(error: UserError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RateLimited | Unavailable):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, InProgress):
        return {"Retry-After": str(RETRY_AFTER_S), "x-should-retry": "true"}
    # The SDK takes any 409 for a lock that a retry may find open, and any 429 for haste; these do not pass so.
    return {"x-should-retry": "false"} if isinstance(error, Conflict | QuotaExceeded) else {}


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_from_pydantic(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    described = error.error if isinstance(error, Refused) else _from_starlette(request, error)
    return error_response(described, error.headers)


async def _on_away(request: Request, error: Exception) -> Response:
    return _away(request.scope, error)


def _away(scope: Scope, error: Exception) -> Response:
    log.warning("%s %s: the store is not available: %s", scope["method"], scope["path"], error)
    message = "The server's store is not available now. Try again shortly."
    answer = UserError(message, code="service_unavailable", status=503)
    return error_response(answer, {"Retry-After": str(RETRY_AFTER_S)})


async def _on_response_error(request: Request, error: Exception) -> Response:
    if not passes(error):
        raise error
    return await _on_away(request, error)


def _from_starlette(request: Request, error: HTTPException) -> UserError:
    method, path = request.method, request.url.path
    if error.status_code == 404:
        message = f"Unknown request URL: {method} {path}. The routes of this server are listed at /docs."
        return UserError(message, code="unknown_url", status=404)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{method} is not allowed on {path}; it takes {allowed}."
        return UserError(message, code="method_not_allowed", status=405)
    if isinstance(error.__cause__, RecursionError):
        return UserError("The request body is nested too deep: so many arrays or objects in one another are not read.")
    return UserError(error.detail, status=error.status_code)


def _from_pydantic(errors: Any) -> UserError:
    for error in errors:
        if error["type"] == "json_invalid":
            reason, position = error["ctx"]["error"], error["loc"][-1]
            return UserError(f"The request body is not valid JSON: {reason} at character {position}.")
        if error["loc"] == ("body",):
            return _unusable_body(error)
        if error["loc"] in FILE_FIELDS and error["type"] == "value_error":
            return invalid_type(error["loc"][-1], "a file", error["input"])
    return user_error([error | {"loc": _plain(error["loc"])} for error in errors], skip=1)


def _unusable_body(error: Mapping[str, Any]) -> UserError:
    """The body as a whole: absent, not declared as JSON, or JSON of another kind."""
    if error["type"] == "missing" or error["input"] is None:
        return UserError("The request needs a JSON object as its body.", code="missing_required_parameter")
    if isinstance(error["input"], bytes):
        message = "The request body must be JSON, sent with the header 'Content-Type: application/json'."
        return UserError(message, code="unsupported_content_type")
    return invalid_type("body", "an object", error["input"])


def _plain(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The form field `expires_after[seconds]` is named as OpenAI names it: `expires_after.seconds`."""
    parts: list[int | str] = []
    for part in location:
        parts += re.findall(r"[^\[\]]+", part) if isinstance(part, str) else [part]
    return tuple(parts)
