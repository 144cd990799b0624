"""How a created batch begins: its lines are checked and its shards cut, and it runs, or ends for what is wrong with it.

Every step may be done twice and gives the same. One process at a time begins or ends a given batch (`batch_lock`).
Knows nothing of RQ, nor of what becomes of the shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from redis.exceptions import ResponseError
from redis.lock import Lock

from .arranging import arranged_copy
from .backend import Backend
from .errors import BlobMissing, BlobsUnavailable, Conflict, UserError
from .line_index import pack_order
from .locks import batch_lock, renew, renewing, while_locked
from .places import fetch_input, has_input
from .policy import Candidate
from .publishing import scratch_folder, sweep_drafts
from .records import ENDED, FINAL, Batch, BatchError, BatchStatus
from .reopening import sort_lines
from .validation import Arrangement, Reader, Validated, validate

log = logging.getLogger(__name__)


def validate_batch(backend: Backend, batch_id: str) -> None:
    """Read a new batch's lines; let it run, or fail it with everything that is wrong."""
    with batch_lock(backend, batch_id) as lock:
        if lock is not None:
            begin(backend, batch_id, lock)


def begin(backend: Backend, batch_id: str, lock: Lock) -> None:
    """The same for who holds the batch's lock."""
    batch = backend.store.batch(batch_id)
    if batch.status in ENDED or batch.num_shards:
        return
    if batch.generation:
        _begin_again(backend, batch, lock)
    elif _has_input(backend, batch, lock):
        _check(backend, batch, lock)


def _check(backend: Backend, batch: Batch, lock: Lock) -> None:
    """Read every line, and let the batch run or end it."""

    def read() -> Iterator[bytes]:
        for chunk in backend.blobs_of(batch).open(batch.input_blob):
            renew(lock)
            yield chunk

    models = backend.store.known_models()
    result = validate(
        batch,
        read,
        models=models,
        settings=backend.settings,
        answer_tokens=backend.store.answer_tokens(),
        samplings=backend.store.samplings(),
    )
    errors = _refusals(backend, batch, result)
    if errors:
        backend.store.fail(batch.id, errors, result.total, to=_end_of(batch), generation=0)
    else:
        _let_run(backend, batch, result, read, lock)


def _let_run(backend: Backend, batch: Batch, result: Validated, read: Reader, lock: Lock) -> None:
    # Nothing will run in one that is being wound up, whatever its order.
    arrangement = result.arrangement if batch.closing is None else None
    arranged = arrangement is not None and _arrange(backend, batch, read, arrangement, lock)
    begun = backend.shards.begin(
        batch.id,
        arrangement.shards if arranged and arrangement is not None else result.shards,
        model=result.model,
        total=result.total,
        arranged=arranged,
        estimated_tokens=result.estimated_tokens,
    )
    if not begun and backend.store.batch(batch.id).status in ENDED:
        # Another process was faster, and has cleaned up already.
        backend.quotas.give_back(batch.tenant, batch.id)
        if arranged:
            drop_copy(backend, batch)


def _end_of(batch: Batch) -> BatchStatus:
    """What a batch ends as in which nothing can run: if it is being wound up, as what it is wound up for."""
    return "failed" if batch.closing is None else FINAL[batch.closing]


def _refusals(backend: Backend, batch: Batch, result: Validated) -> tuple[BatchError, ...]:
    """Why a batch is not to run: what is wrong with it, or that there is no time or no room for it."""
    if result.errors or batch.closing is not None:
        return result.errors
    refusal = _too_late(backend, batch, result)
    if refusal is None:
        refusal = backend.quotas.take_tokens(batch, result.model, result.asked_tokens)
    return () if refusal is None else (refusal,)


def _too_late(backend: Backend, batch: Batch, result: Validated) -> BatchError | None:
    """Why a strict batch is not to run: it would end after its window. Where nothing was measured yet, nobody knows."""
    if not batch.strict:
        return None
    candidate = Candidate(
        id=batch.id,
        tenant=batch.tenant,
        priority=batch.priority,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        num_shards=len(result.shards),
        shard_tokens=result.estimated_tokens / len(result.shards),
    )
    foreseen = backend.lineups.of(result.model).foresee(candidate)
    if foreseen is None or foreseen.ends_at is None or foreseen.feasible:
        return None
    eta = datetime.fromtimestamp(foreseen.ends_at, UTC).isoformat(timespec="seconds")
    message = (
        f"The batch would end at about {eta} (Unix {int(foreseen.ends_at)}), after its completion_window of "
        f"{batch.completion_window}. Give it more time or a higher 'pressrun.priority', or leave out 'pressrun.strict' "
        "and it runs as far as it gets."
    )
    return BatchError(code="window_too_short", message=message, param="completion_window")


def _begin_again(backend: Backend, batch: Batch, lock: Lock) -> None:
    """Let the lines run that a batch was opened again for."""
    try:
        found = sort_lines(backend, batch, renewing(lock), scratch_folder(backend))
    except (BlobMissing, Conflict) as error:
        why = BatchError(code="file_deleted", message=f"A file that the batch is made of has been deleted: {error}")
        backend.store.fail(batch.id, [why], batch.counts.total, to=_end_of(batch), generation=batch.generation)
        return
    # It may have been opened again before whoever ended it could clean up.
    sweep_drafts(backend, replace(batch, generation=batch.generation - 1))
    backend.shards.begin(
        batch.id,
        found.shards,
        model=batch.model or "",
        total=batch.counts.total,
        arranged=True,
        estimated_tokens=batch.estimated_tokens,
        generation=batch.generation,
        kept=found.kept,
    )


def _has_input(backend: Backend, batch: Batch, lock: Lock) -> bool:
    """Whether there is something to read; a batch that has to do without is ended."""
    if batch.input_url is None or (batch.closing is not None and has_input(backend, batch)):
        return True
    if batch.closing is not None:  # What nobody wants any more is not fetched.
        backend.store.fail(batch.id, [], 0, to=_end_of(batch), generation=0)
        return False
    try:
        fetch_input(backend, batch, lock)
    except UserError as error:
        found = BatchError(code=error.code or "invalid_request", message=error.message, param=error.param)
        backend.store.fail(batch.id, [found], 0, generation=0)
        return False
    return True


def _arrange(backend: Backend, batch: Batch, read: Reader, arrangement: Arrangement, lock: Lock) -> bool:
    """Write the copy that an arranged batch is run from; False if there is no room for it."""
    try:
        lines = arranged_copy(read(), arrangement.layout, arrangement.order, scratch_folder(backend))
        backend.blobs_of(batch).put(batch.arranged_blob, while_locked(lines, lock))
        backend.blobs_of(batch).put(batch.order_blob, pack_order(arrangement.order))
    except (OSError, BlobsUnavailable, ResponseError) as error:
        log.warning("batch %s is run in the order of its file: a copy could not be written: %s", batch.id, error)
        return False
    return True


def drop_copy(backend: Backend, batch: Batch) -> None:
    """Delete the copy that a batch was arranged in, if there is one."""
    for key in (batch.arranged_blob, batch.order_blob):
        backend.blobs.delete(key)
