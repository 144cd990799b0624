"""What the API says of native jobs, which OpenAI does not have. Times are Unix seconds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .schemas import Identified

JobStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]


class JobResponse(BaseModel):
    """What the request would have been answered with over HTTP."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class JobError(BaseModel):
    """Why there is no answer."""

    code: str | None
    message: str
    param: str | None = None


class JobExtension(BaseModel):
    """What Pressrun knows of a job beyond its request and its answer."""

    priority: int


class JobObject(Identified):
    """One request on its way.

    `response` is there once it has run, well or not; `error` once it has ended without success.
    """

    object: Literal["job"] = "job"
    status: JobStatus
    endpoint: str
    model: str | None
    created_at: int
    expires_at: int
    finished_at: int | None
    response: JobResponse | None
    error: JobError | None
    pressrun: JobExtension
