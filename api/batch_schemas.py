"""What the API says of batches: OpenAI's object, and Pressrun's extension of it. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel

from ..jobs.records import Batch, BatchStatus
from ..jobs.reports import MOST_ERRORS, Report
from .schemas import Identified


class RequestCounts(BaseModel):
    """Requests of a batch. Those that never ran count only in the total."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    """How many of the input tokens were not computed again."""

    cached_tokens: int


class OutputTokensDetails(BaseModel):
    """How many of the output tokens were reasoning."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """Tokens of the requests that have finished so far."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchErrorObject(BaseModel):
    """One thing that validation found; `line` is 1-based."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """All that validation found."""

    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class LineCounts(BaseModel):
    """Every request of a batch in one place, so that they sum to the total."""

    queued: int
    running: int
    succeeded: int
    errored: int
    cancelled: int
    expired: int


class CommonError(BaseModel):
    """So many requests failed with this code, at this parameter; the message is the first one's."""

    code: str
    param: str | None
    message: str
    count: int


class PhaseSeconds(BaseModel):
    """Where a batch's time went, up to now."""

    validating: float
    queued: float
    running: float
    finalizing: float


class BatchExtension(BaseModel):
    """What is said of a batch beyond OpenAI's fields.

    `queue_place` 1 is fed next. `eta` and `feasible` are null where they cannot be told: before validation, while the
    batch is paused, after its end, and until a worker has measured its speed. `tokens_per_second` is the mean while it
    ran. `estimated_tokens` is what all requests will use.

    `input_url` is the object in S3 that `input_file_id` is made from at validation. Results are below `output_prefix`
    too once the batch has ended, unless there is a `delivery_error`.
    """

    priority: int
    strict: bool
    paused: bool
    queue_place: int | None
    eta: int | None
    feasible: bool | None
    counts: LineCounts
    commonest_errors: list[CommonError]
    estimated_tokens: int
    cached_tokens: int
    tokens_per_second: float
    seconds: PhaseSeconds
    input_url: str | None
    output_prefix: str | None
    delivery_error: str | None

    @classmethod
    def of(cls, batch: Batch, report: Report) -> BatchExtension:
        return cls(
            priority=batch.priority,
            strict=batch.strict,
            paused=batch.paused,
            queue_place=report.queue_place,
            eta=report.eta,
            feasible=report.feasible,
            counts=LineCounts(**asdict(report.standing)),
            commonest_errors=[CommonError(**asdict(error)) for error in batch.common_errors[:MOST_ERRORS]],
            estimated_tokens=report.estimated_tokens,
            cached_tokens=batch.usage.cached_tokens,
            tokens_per_second=report.tokens_per_second,
            seconds=PhaseSeconds(**report.seconds),
            input_url=batch.input_url,
            output_prefix=batch.output_prefix,
            delivery_error=batch.delivery_error,
        )


class BatchObject(Identified):
    """A batch, as far as it has got."""

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    pressrun: BatchExtension

    @classmethod
    def of(cls, batch: Batch, report: Report) -> BatchObject:
        at = batch.times.get
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model or None,
            errors=_errors(batch),
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=batch.created_at,
            in_progress_at=at("in_progress_at"),
            expires_at=batch.expires_at,
            finalizing_at=at("finalizing_at"),
            completed_at=at("completed_at"),
            failed_at=at("failed_at"),
            expired_at=at("expired_at"),
            cancelling_at=at("cancelling_at"),
            cancelled_at=at("cancelled_at"),
            request_counts=_counts(batch),
            usage=_usage(batch),
            metadata=batch.metadata,
            pressrun=BatchExtension.of(batch, report),
        )


def _errors(batch: Batch) -> BatchErrors | None:
    if not batch.errors:
        return None
    found = [BatchErrorObject(code=e.code, line=e.line, message=e.message, param=e.param) for e in batch.errors]
    return BatchErrors(data=found)


def _counts(batch: Batch) -> RequestCounts:
    return RequestCounts(total=batch.counts.total, completed=batch.counts.completed, failed=batch.counts.failed)


def _usage(batch: Batch) -> BatchUsage:
    usage = batch.usage
    return BatchUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.input_tokens + usage.output_tokens,
    )
