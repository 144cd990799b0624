"""`/v1/batches/{id}/pause` and its likes, which OpenAI does not have.

The rules are those of `jobs/control.py` and `jobs/retry.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from ..jobs import control, retry
from .batch_schemas import BatchObject
from .batches import shown
from .deps import BackendDep, TenantDep

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchUpdate(BaseModel):
    """What is to be changed; the rest stays."""

    model_config = ConfigDict(extra="forbid")

    priority: StrictInt | None = Field(
        default=None, ge=-100, le=100, description="All work of a higher one runs first."
    )
    completion_window: StrictStr | None = Field(
        default=None, description="A longer duration than before, from the batch's creation on, up to `30d`."
    )


class BatchRetry(BaseModel):
    """Which lines are to run again."""

    model_config = ConfigDict(extra="forbid")

    lines: Literal["failed"] | Annotated[list[StrictStr], Field(fail_fast=True)] = Field(
        description="`failed` for every line of the error file, or up to 10,000 `custom_id`s, whatever became of them."
    )


@router.post("/{batch_id}/pause")
def pause_batch(batch_id: str, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """Begin nothing more of a batch: lines that are running finish, and its window goes on."""
    return shown(backend, control.pause_batch(backend, batch_id, tenant))


@router.post("/{batch_id}/resume")
def resume_batch(batch_id: str, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """Let a paused batch go on."""
    return shown(backend, control.resume_batch(backend, batch_id, tenant))


@router.post("/{batch_id}/update")
def update_batch(batch_id: str, body: BatchUpdate, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """Change the priority of a batch, or extend its window."""
    changes = body.model_dump()
    return shown(backend, control.update_batch(backend, batch_id, tenant=tenant, **changes))


@router.post("/{batch_id}/retry")
def retry_batch(batch_id: str, body: BatchRetry, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """Run lines of an ended batch again. Its next files hold each line once, the new results in place of the old."""
    return shown(backend, retry.retry_batch(backend, batch_id, body.lines, tenant))
