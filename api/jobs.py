"""`/v1/jobs`: one request, answered at once with an id, polled until it is done. The rules are `jobs/submit.py`'s.

A job is a batch of one line underneath; this module shows it as a request and its answer.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ..jobs import ids, submit
from ..jobs.backend import Backend
from ..jobs.records import ENDED, Batch
from .deps import BackendDep, TenantDep
from .once import OnceDep
from .schemas import JobError, JobObject, JobResponse, JobStatus

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

UNANSWERED = {
    "cancelled": JobError(code="job_cancelled", message="The job was cancelled."),
    "expired": JobError(code="job_expired", message="The job expired before it had run."),
}


class JobCreate(BaseModel):
    """A request to run."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        validation_alias=AliasChoices("url", "endpoint"),
        description="`/v1/chat/completions`, `/v1/completions`, `/v1/responses` or `/v1/embeddings`. May be called "
        "`endpoint`.",
    )
    body: Any = Field(description="The body that would be sent to `url`.", json_schema_extra={"type": "object"})


@router.post("", status_code=202)
def create_job(
    request: JobCreate, response: Response, backend: BackendDep, tenant: TenantDep, once: OnceDep
) -> JobObject:
    """Queue one request, ahead of all batches. It is checked now, and runs soon; `GET` it until its status says so."""
    job = once(
        request,
        new_id=ids.job_id,
        find=lambda job_id: submit.find_job(backend, job_id, tenant),
        create=lambda job_id: submit.create_job(
            backend, url=request.url, body=request.body, tenant=tenant, job_id=job_id
        ),
    )
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    return _shown(backend, job)


@router.get("/{job_id}")
def retrieve_job(job_id: str, backend: BackendDep, tenant: TenantDep) -> JobObject:
    """A job, with its response once it has one. It can be polled for `PRESSRUN_JOB_TTL_S` after its end."""
    return _shown(backend, submit.find_job(backend, job_id, tenant))


@router.delete("/{job_id}")
def cancel_job(job_id: str, backend: BackendDep, tenant: TenantDep) -> JobObject:
    """Cancel a job; what it has produced so far is dropped."""
    job = submit.find_job(backend, job_id, tenant)
    return _shown(backend, backend.store.cancel(job.id))


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
