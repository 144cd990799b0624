"""From committed lines to the batch's files: sealing shards, filling in what never ran, joining, ending.

Every step may be done twice and gives the same: segments and files have fixed names and contents, and the moves
between them are single scripts. One process at a time ends a given batch (`batch_lock`). Knows nothing of RQ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Literal

from redis.exceptions import ResponseError
from redis.lock import Lock

from .arranging import arranged_copy
from .backend import Backend
from .errors import BlobsUnavailable, UserError
from .ids import owner_id
from .line_index import pack_order
from .lines import label, never_ran, requests_of
from .locks import batch_lock, renew, while_locked
from .places import fetch_input, has_input
from .publishing import publish, scratch_folder
from .records import ENDED, Batch, BatchError, Claim, Segment, ShardCommit
from .store import batch_key
from .validation import Arrangement, Reader, validate

log = logging.getLogger(__name__)

FILL_LINES = 500
FINAL: dict[str | None, Literal["completed", "cancelled", "expired"]] = {
    None: "completed",
    "cancelled": "cancelled",
    "expired": "expired",
}


def validate_batch(backend: Backend, batch_id: str) -> None:
    """Read a new batch's lines; let it run, or fail it with everything that is wrong."""
    with batch_lock(backend, batch_id) as lock:
        if lock is not None:
            _validate(backend, batch_id, lock)


def _validate(backend: Backend, batch_id: str, lock: Lock) -> None:
    batch = backend.store.batch(batch_id)
    if batch.status in ENDED or batch.num_shards or not _has_input(backend, batch, lock):
        return

    def read() -> Iterator[bytes]:
        for chunk in backend.blobs_of(batch).open(batch.input_blob):
            renew(lock)
            yield chunk

    models = {card.id for card in backend.store.models()}
    result = validate(batch, read, models=models, settings=backend.settings)
    if not result.errors:
        # Nothing will run in one that is being wound up, whatever its order.
        arrangement = result.arrangement if batch.closing is None else None
        arranged = arrangement is not None and _arrange(backend, batch, read, arrangement, lock)
        shards = arrangement.shards if arranged and arrangement is not None else result.shards
        begun = backend.shards.begin(batch_id, shards, model=result.model, total=result.total, arranged=arranged)
        if arranged and not begun and backend.store.batch(batch_id).status in ENDED:
            # Another process was faster, and has cleaned up already.
            _drop_copy(backend, batch)
    else:
        # One that is being wound up ends as what it was wound up for: nothing in it could have run.
        to = "failed" if batch.closing is None else FINAL[batch.closing]
        backend.store.fail(batch_id, result.errors, result.total, to=to)


def _has_input(backend: Backend, batch: Batch, lock: Lock) -> bool:
    """Whether there is something to read; a batch that has to do without is ended."""
    if batch.input_url is None or (batch.closing is not None and has_input(backend, batch)):
        return True
    if batch.closing is not None:  # What nobody wants any more is not fetched.
        backend.store.fail(batch.id, [], 0, to=FINAL[batch.closing])
        return False
    try:
        fetch_input(backend, batch, lock)
    except UserError as error:
        found = BatchError(code=error.code or "invalid_request", message=error.message, param=error.param)
        backend.store.fail(batch.id, [found], 0)
        return False
    return True


def _arrange(backend: Backend, batch: Batch, read: Reader, arrangement: Arrangement, lock: Lock) -> bool:
    """Write the copy that an arranged batch is run from; False if there is no room for it."""
    try:
        lines = arranged_copy(read(), arrangement.beginnings, arrangement.order, scratch_folder(backend))
        backend.blobs_of(batch).put(batch.arranged_blob, while_locked(lines, lock))
        backend.blobs_of(batch).put(batch.order_blob, [pack_order(arrangement.order)])
    except (OSError, BlobsUnavailable, ResponseError) as error:
        log.warning("batch %s is run in the order of its file: a copy could not be written: %s", batch.id, error)
        return False
    return True


def _drop_copy(backend: Backend, batch: Batch) -> None:
    for key in (batch.arranged_blob, batch.order_blob):
        backend.blobs.delete(key)


def seal_shard(backend: Backend, claim: Claim) -> None:
    """Write a complete shard's lines to the blob store, let go of its spool, and end the batch if it was the last.

    A shard that is not complete is left alone: someone else has sealed it, or a crash of Redis took back some of its
    lines. Whoever claims it next runs what is missing.
    """
    batch, shard = claim.batch, claim.shard
    lines = backend.shards.spool(batch.id, shard.index)
    if len(lines) != shard.num_lines:
        return
    blobs = backend.blobs_of(batch)
    sizes = {}
    for part in ("output", "error"):
        wanted = [
            (label(index) if batch.arranged else b"") + data + b"\n"
            for index, code, data in lines
            if (code == "s") == (part == "output")
        ]
        sizes[part] = blobs.put(batch.segment_blob(shard.index, part), wanted) if wanted else 0
    segment = Segment(**sizes, errors=_error_bits(code for _, code, _ in lines) if all(sizes.values()) else None)
    if backend.shards.seal(claim, segment) == "last":
        end_batch(backend, batch.id)


def _error_bits(codes: Iterable[str]) -> int:
    """Which lines of a shard, given by their outcomes, are in its error part: a bit for each, the first the lowest."""
    return sum(1 << i for i, code in enumerate(codes) if code != "s")


def fill_shard(backend: Backend, batch_id: str, shard: int, code: str) -> None:
    """End a shard whose missing lines will not run: each becomes an error line with `code`."""
    claim = backend.shards.claim(batch_id, shard, owner_id(), backend.settings.lease_s, winding_up=True)
    if claim is None:
        return
    lines = requests_of(backend.blobs_of(claim.batch), claim.batch, claim.shard)
    missing = tuple(never_ran(line, code) for line in lines if line.index not in claim.done)
    for start in range(0, len(missing), FILL_LINES):
        commit = ShardCommit(
            batch_id=batch_id,
            shard=shard,
            owner=claim.owner,
            num_lines=claim.shard.num_lines,
            results=missing[start : start + FILL_LINES],
        )
        backend.shards.commit([commit])
    seal_shard(backend, claim)


def wind_up(backend: Backend, batch_id: str) -> None:
    """Bring a cancelled or expired batch to its end: every line that did not run is filled in."""
    with batch_lock(backend, batch_id) as lock:
        if lock is None:
            return
        _validate(backend, batch_id, lock)
        batch = backend.store.batch(batch_id)
        for shard in backend.shards.unsealed(batch_id):
            renew(lock)
            fill_shard(backend, batch_id, shard, f"batch_{batch.closing}")
        _end(backend, batch_id, lock)


def end_batch(backend: Backend, batch_id: str) -> None:
    """Join the segments of a batch whose shards are all sealed, publish its files, and clean up behind it."""
    with batch_lock(backend, batch_id) as lock:
        if lock is not None:
            _end(backend, batch_id, lock)


def _end(backend: Backend, batch_id: str, lock: Lock) -> None:
    batch = backend.store.batch(batch_id)
    if batch.status in ("finalizing", "cancelling"):
        segments = backend.shards.segments(batch_id)
        if not batch.num_shards or len(segments) < batch.num_shards:
            return
        files = {} if batch.kind == "job" else publish(backend, batch, segments, lock)
        backend.store.move(batch_id, FINAL[batch.closing], **files)
    _clean(backend, backend.store.batch(batch_id))


def _clean(backend: Backend, batch: Batch) -> None:
    """An ended batch needs neither shards nor segments; an ended job keeps its answer while it may be polled."""
    if batch.status not in ENDED:
        return
    if batch.kind == "job":
        backend.job_blobs.delete(batch.input_blob)
    else:
        # If a crash of Redis took the end back, the batch would be ended again, from segments that are gone.
        backend.store.make_durable()
        for key in backend.blobs.list(f"segments/{batch.id}"):
            backend.blobs.delete(key)
        _drop_copy(backend, batch)
    backend.shards.drop(batch.id)
    if batch.kind == "job":
        backend.redis.expire(batch_key(batch.id), backend.settings.job_ttl_s)
        for part in ("output", "error"):
            backend.job_blobs.keep(batch.segment_blob(0, part), backend.settings.job_ttl_s)
    backend.store.forget_active(batch.id)
