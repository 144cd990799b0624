"""`/v1/jobs`: one request, answered at once with an id, polled until it is done. The rules are `jobs/submit.py`'s.

A job is a batch of one line underneath; this module shows it as a request and its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictInt

from ..jobs import ids, submit
from ..jobs.backend import Backend
from ..jobs.records import ENDED, Batch
from .deps import BackendDep, TenantDep
from .job_schemas import JobError, JobExtension, JobObject, JobResponse, JobStatus
from .once import OnceDep
from .waiting import Waiting

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

UNANSWERED = {
    "cancelled": JobError(code="job_cancelled", message="The job was cancelled."),
    "expired": JobError(code="job_expired", message="The job expired before it had run."),
}


class JobOptions(BaseModel):
    """What a new job may ask for beyond its request."""

    model_config = ConfigDict(extra="forbid")

    priority: StrictInt = Field(
        default=0, ge=-100, le=100, description="From -100 to 100. Jobs of a higher priority are taken first."
    )


class JobCreate(BaseModel):
    """A request to run."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        validation_alias=AliasChoices("url", "endpoint"),
        description="`/v1/chat/completions`, `/v1/completions`, `/v1/responses` or `/v1/embeddings`. May be called "
        "`endpoint`.",
    )
    body: Any = Field(description="The body that would be sent to `url`.", json_schema_extra={"type": "object"})
    pressrun: JobOptions = JobOptions()


@router.post("", status_code=202)
async def create_job(
    asked: JobCreate, request: Request, response: Response, backend: BackendDep, tenant: TenantDep, once: OnceDep
) -> JobObject:
    """Queue one request, ahead of all batches. It is checked now, and runs soon; `GET` it until its status says so."""

    def create(job_id: str) -> Batch:
        priority = asked.pressrun.priority
        return submit.create_job(
            backend, url=asked.url, body=asked.body, tenant=tenant, priority=priority, job_id=job_id
        )

    def made() -> JobObject:
        find = partial(submit.find_job, backend, tenant=tenant)
        return _shown(backend, once(asked, new_id=ids.job_id, find=find, create=create))

    job = await _durably(request, made)
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    return job


@router.get("/{job_id}")
def retrieve_job(job_id: str, backend: BackendDep, tenant: TenantDep) -> JobObject:
    """A job, with its response once it has one. It can be polled for `PRESSRUN_JOB_TTL_S` after its end."""
    return _shown(backend, submit.find_job(backend, job_id, tenant))


@router.delete("/{job_id}")
async def cancel_job(job_id: str, request: Request, backend: BackendDep, tenant: TenantDep) -> JobObject:
    """Cancel a job; what it has produced so far is dropped."""

    def cancelled() -> JobObject:
        job = submit.find_job(backend, job_id, tenant)
        return _shown(backend, backend.store.cancel(job.id))

    return await _durably(request, cancelled)


async def _durably(request: Request, change: Callable[[], JobObject]) -> JobObject:
    """What came of a change, once it is on disk. One wait serves all who came before it began, and takes no thread."""
    job = await to_thread.run_sync(change)
    waiting: Waiting = request.app.state.waiting
    await waiting.durable()
    return job


def _shown(backend: Backend, job: Batch) -> JobObject:
    status = _status(backend, job)
    line = submit.job_result(backend, job) if status in ("completed", "failed") else None
    response = JobResponse.model_validate(line["response"]) if line and line["response"] else None
    return JobObject(
        id=job.id,
        status=status,
        endpoint=job.endpoint,
        model=job.model or None,
        created_at=job.created_at,
        expires_at=job.expires_at,
        finished_at=job.times.get(f"{job.status}_at") if job.status in ENDED else None,
        response=response,
        error=UNANSWERED.get(status) or _error(line),
        pressrun=JobExtension(priority=job.priority),
    )


def _status(backend: Backend, job: Batch) -> JobStatus:
    """A job that was asked to stop is cancelled from then on, even if its line comes in meanwhile."""
    if job.closing == "cancelled":
        return "cancelled"
    if job.status in ENDED:
        return "completed" if job.counts.completed else "failed" if job.counts.failed else "expired"
    if job.status == "finalizing" or backend.shards.num_leased(job.id):
        return "in_progress"
    return "queued"


def _error(line: dict[str, Any] | None) -> JobError | None:
    """What a finished line says is wrong: with the line itself, or in the body of its response."""
    if line is None:
        return None
    found = line["error"] or line["response"]["body"].get("error")
    return found and JobError(code=found["code"], message=found["message"], param=found.get("param"))
