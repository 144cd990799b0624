"""`/v1/batches/{id}/pause` and its likes, which OpenAI does not have. The rules are `jobs/control.py`'s."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from ..jobs import control
from .batches import shown
from .deps import BackendDep
from .schemas import BatchObject

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


@router.post("/{batch_id}/pause")
def pause_batch(batch_id: str, backend: BackendDep) -> BatchObject:
    """Begin nothing more of a batch: lines that are running finish, and its window goes on."""
    return shown(backend, control.pause_batch(backend, batch_id))


@router.post("/{batch_id}/resume")
def resume_batch(batch_id: str, backend: BackendDep) -> BatchObject:
    """Let a paused batch go on."""
    return shown(backend, control.resume_batch(backend, batch_id))


@router.post("/{batch_id}/update")
def update_batch(batch_id: str, body: BatchUpdate, backend: BackendDep) -> BatchObject:
    """Change the priority of a batch, or extend its window."""
    changes = body.model_dump()
    return shown(backend, control.update_batch(backend, batch_id, **changes))
