"""`/v1/batches`: create, list, retrieve, cancel. The rules are `jobs/submit.py`'s."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, StrictBool, StrictInt

from ..jobs import ids, submit
from ..jobs.backend import Backend
from ..jobs.records import Batch
from ..jobs.reports import reports_of
from .batch_schemas import BatchObject
from .deps import BackendDep, TenantDep
from .expiry import ExpiresAfter, seconds_of
from .once import OnceDep
from .schemas import ListOf

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchOptions(BaseModel):
    """What a new batch may ask for beyond OpenAI's fields."""

    model_config = ConfigDict(extra="forbid")

    priority: StrictInt = Field(
        default=0, ge=-100, le=100, description="From -100 to 100. All work of a higher priority runs first."
    )
    strict: StrictBool = Field(
        default=False,
        description="Fail the batch after validation if it would end after its window, and say when it would.",
    )
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
    endpoint: str = Field(
        description="`/v1/chat/completions`, `/v1/completions`, `/v1/responses` or `/v1/embeddings`: that of all lines."
    )
    completion_window: str = Field(description="A duration from `1m` to `30d`, such as `24h`.")
    # `submit` words what is wrong with a pair, and under which name, better than pydantic would.
    metadata: SkipValidation[dict[str, str] | None] = Field(
        None, description="At most 16 pairs: keys of at most 64 characters, values of at most 512."
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="How long the output and the error file are kept. Without it, until they are deleted."
    )
    pressrun: BatchOptions = Field(BatchOptions(), description="What OpenAI's batches do not have.")


class BatchQuery(BaseModel):
    """How many batches to list, and where to go on."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="The id of the last batch of the page before.")


@router.post("")
def create_batch(body: BatchCreate, backend: BackendDep, tenant: TenantDep, once: OnceDep) -> BatchObject:
    """Run every line of a file. What is wrong with the lines shows in the batch's `errors` once it is validated."""
    batch = once(
        body,
        new_id=ids.batch_id,
        find=lambda batch_id: submit.find_batch(backend, batch_id, tenant),
        create=lambda batch_id: submit.create_batch(
            backend,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            metadata=body.metadata,
            priority=body.pressrun.priority,
            strict=body.pressrun.strict,
            output_ttl_s=seconds_of(body.output_expires_after),
            output_prefix=body.pressrun.output_prefix,
            tenant=tenant,
            batch_id=batch_id,
        ),
    )
    return shown(backend, batch)


@router.get("")
def list_batches(query: Annotated[BatchQuery, Query()], backend: BackendDep, tenant: TenantDep) -> ListOf[BatchObject]:
    """Batches, newest first."""
    page = backend.store.batches(tenant=tenant, limit=query.limit, after=query.after)
    reports = zip(page.items, reports_of(backend, page.items), strict=True)
    return ListOf.of([BatchObject.of(batch, report) for batch, report in reports], page.has_more)


@router.get("/{batch_id}")
def retrieve_batch(batch_id: str, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """A batch, as far as it has got."""
    return shown(backend, submit.find_batch(backend, batch_id, tenant))


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: str, backend: BackendDep, tenant: TenantDep) -> BatchObject:
    """End a batch early: lines that have finished stay in its files, the others become `batch_cancelled` errors."""
    batch = submit.find_batch(backend, batch_id, tenant)
    return shown(backend, backend.store.cancel(batch.id))


def shown(backend: Backend, batch: Batch) -> BatchObject:
    """A batch as clients see it."""
    (report,) = reports_of(backend, [batch])
    return BatchObject.of(batch, report)
