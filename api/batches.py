"""`/v1/batches`: create, list, retrieve, cancel. The rules are `jobs/submit.py`'s."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from ..jobs import submit
from ..jobs.errors import UserError
from .deps import BackendDep
from .schemas import BatchObject, ListOf

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchOptions(BaseModel):
    """What a new batch may ask for beyond OpenAI's fields."""

    model_config = ConfigDict(extra="forbid")

    output_prefix: str | None = Field(
        default=None,
        description="An `s3://bucket/folder/` of `PRESSRUN_S3_OUTPUTS`, where the result files are put too.",
    )


class BatchCreate(BaseModel):
    """A new batch."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(
        description="A file uploaded with purpose `batch`, or an `s3://bucket/key` of `PRESSRUN_S3_INPUTS`."
    )
    endpoint: str = Field(description="`/v1/chat/completions` or `/v1/completions`; that of every line.")
    completion_window: str = Field(description="A duration from `1m` to `30d`, such as `24h`.")
    # `submit` words what is wrong with a pair, and under which name, better than pydantic would.
    metadata: SkipValidation[dict[str, str] | None] = Field(
        None, description="At most 16 pairs: keys of at most 64 characters, values of at most 512."
    )
    output_expires_after: Any = Field(None, description="Not supported yet: anything but null is refused.")
    pressrun: BatchOptions = Field(BatchOptions(), description="What OpenAI's batches do not have.")


class BatchQuery(BaseModel):
    """How many batches to list, and where to go on."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="The id of the last batch of the page before.")


@router.post("")
def create_batch(body: BatchCreate, backend: BackendDep) -> BatchObject:
    """Run every line of a file. What is wrong with the lines shows in the batch's `errors` once it is validated."""
    if body.output_expires_after is not None:
        message = "'output_expires_after' is not supported yet; remove it. Output files are kept until deleted."
        raise UserError(message, param="output_expires_after", code="unsupported_parameter")
    batch = submit.create_batch(
        backend,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_prefix=body.pressrun.output_prefix,
    )
    return BatchObject.of(batch)


@router.get("")
def list_batches(query: Annotated[BatchQuery, Query()], backend: BackendDep) -> ListOf[BatchObject]:
    """Batches, newest first."""
    page = backend.store.batches(limit=query.limit, after=query.after)
    return ListOf.of([BatchObject.of(batch) for batch in page.items], page.has_more)


@router.get("/{batch_id}")
def retrieve_batch(batch_id: str, backend: BackendDep) -> BatchObject:
    """A batch, as far as it has got."""
    return BatchObject.of(submit.find_batch(backend, batch_id))


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: str, backend: BackendDep) -> BatchObject:
    """End a batch early: lines that have finished stay in its files, the others become `batch_cancelled` errors."""
    batch = submit.find_batch(backend, batch_id)
    return BatchObject.of(backend.store.cancel(batch.id))
