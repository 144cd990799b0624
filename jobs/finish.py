"""From committed lines to the batch's files: sealing shards, filling in what never ran, joining, ending.

Every step may be done twice and gives the same: segments and files are their writers' alone, and single scripts say
whose count. One process at a time ends a given batch (`batch_lock`). Knows nothing of RQ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from redis.exceptions import ResponseError
from redis.lock import Lock

from .arranging import arranged_copy
from .backend import Backend
from .deliveries import announce
from .errors import BlobMissing, BlobsUnavailable, Conflict, UserError
from .ids import owner_id
from .line_index import pack_order
from .lines import label, never_ran, requests_of
from .locks import batch_lock, renew, renewing, while_locked
from .places import fetch_input, has_input
from .policy import Candidate
from .progress import progress_of
from .publishing import Segments, discard, publish, scratch_folder, sweep_drafts
from .records import ENDED, Batch, BatchError, Claim, Line, Segment, ShardCommit
from .redis_keys import batch_key
from .reopening import forget_lists, sort_lines
from .suspects import portion
from .traces import tell_of_end
from .validation import Arrangement, Reader, Validated, validate

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
    if batch.status in ENDED or batch.num_shards:
        return
    if batch.generation:
        _begin_again(backend, batch, lock)
        return
    if not _has_input(backend, batch, lock):
        return

    def read() -> Iterator[bytes]:
        for chunk in backend.blobs_of(batch).open(batch.input_blob):
            renew(lock)
            yield chunk

    models = backend.store.known_models()
    known = backend.store.answer_tokens()
    result = validate(batch, read, models=models, settings=backend.settings, answer_tokens=known)
    errors = _refusals(backend, batch, result)
    if not errors:
        # Nothing will run in one that is being wound up, whatever its order.
        arrangement = result.arrangement if batch.closing is None else None
        arranged = arrangement is not None and _arrange(backend, batch, read, arrangement, lock)
        shards = arrangement.shards if arranged and arrangement is not None else result.shards
        begun = backend.shards.begin(
            batch_id,
            shards,
            model=result.model,
            total=result.total,
            arranged=arranged,
            estimated_tokens=result.estimated_tokens,
        )
        if not begun and backend.store.batch(batch_id).status in ENDED:
            # Another process was faster, and has cleaned up already.
            backend.quotas.give_back(batch.tenant, batch_id)
            if arranged:
                _drop_copy(backend, batch)
    else:
        # One that is being wound up ends as what it was wound up for: nothing in it could have run.
        to = "failed" if batch.closing is None else FINAL[batch.closing]
        backend.store.fail(batch_id, errors, result.total, to=to, generation=0)


def _refusals(backend: Backend, batch: Batch, result: Validated) -> tuple[BatchError, ...]:
    """Why a batch is not to run: what is wrong with it, or that there is no time or no room for it."""
    if result.errors or batch.closing is not None:
        return result.errors
    refusal = _too_late(backend, batch, result)
    if refusal is None:
        refusal = backend.quotas.take_tokens(batch, result.model, result.asked_tokens)
    return () if refusal is None else (refusal,)


def _begin_again(backend: Backend, batch: Batch, lock: Lock) -> None:
    """Let the lines run that a batch was opened again for."""
    try:
        found = sort_lines(backend, batch, renewing(lock), scratch_folder(backend))
    except (BlobMissing, Conflict) as error:
        why = BatchError(code="file_deleted", message=f"A file that the batch is made of has been deleted: {error}")
        to = "failed" if batch.closing is None else FINAL[batch.closing]
        backend.store.fail(batch.id, [why], batch.counts.total, to=to, generation=batch.generation)
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


def _has_input(backend: Backend, batch: Batch, lock: Lock) -> bool:
    """Whether there is something to read; a batch that has to do without is ended."""
    if batch.input_url is None or (batch.closing is not None and has_input(backend, batch)):
        return True
    if batch.closing is not None:  # What nobody wants any more is not fetched.
        backend.store.fail(batch.id, [], 0, to=FINAL[batch.closing], generation=0)
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
        sizes[part] = blobs.put(batch.segment_blob(shard.index, part, claim.owner), wanted) if wanted else 0
    errors = _error_bits(code for _, code, _ in lines) if all(sizes.values()) else None
    reply = backend.shards.seal(claim, Segment(**sizes, errors=errors, writer=claim.owner))
    if reply == "last":
        end_batch(backend, batch.id)
    elif reply == "lost":
        _discard_segment(backend, claim)


def _discard_segment(backend: Backend, claim: Claim) -> None:
    """Delete what was written under a claim that is lost, unless it was sealed before and only the answer was lost.

    A job's goes by itself, and may be the job's answer.
    """
    batch, shard = claim.batch, claim.shard.index
    sealed = backend.shards.segment(batch.id, shard)
    if batch.kind == "batch" and (sealed is None or sealed.writer != claim.owner):
        backend.blobs.delete(batch.segment_blob(shard, "output", claim.owner))
        backend.blobs.delete(batch.segment_blob(shard, "error", claim.owner))


def _error_bits(codes: Iterable[str]) -> int:
    """Which lines of a shard, given by their outcomes, are in its error part: a bit for each, the first the lowest."""
    return sum(1 << i for i, code in enumerate(codes) if code != "s")


def fill_shard(backend: Backend, batch_id: str, shard: int, code: str) -> None:
    """End a shard whose missing lines will not run: each becomes an error line with `code`.

    Where its batch has ended and was opened again meanwhile, they run after all.
    """
    _fill(backend, batch_id, shard, code, lambda claim, missing: len(missing) if claim.batch.closing else 0)


def give_up_on(backend: Backend, batch_id: str, shard: int) -> None:
    """End the lines that a spent shard was tried with last; what is left of it is tried again.

    A shard that is not spent any more, because another process was faster, is left as it is.
    """
    most = backend.settings.max_attempts

    def tried_last(claim: Claim, missing: Sequence[Line]) -> int:
        attempts = claim.attempts - 1  # Before this claim.
        return portion(len(missing), attempts, most) if attempts >= most else 0

    if backend.shards.attempts_of(batch_id, shard) >= most:
        _fill(backend, batch_id, shard, "worker_lost", tried_last)


def _fill(
    backend: Backend, batch_id: str, shard: int, code: str, how_many: Callable[[Claim, Sequence[Line]], int]
) -> None:
    claim = backend.shards.claim(batch_id, shard, owner_id(), backend.settings.lease.hold, winding_up=True)
    if claim is None:
        return
    lines = requests_of(backend.blobs_of(claim.batch), claim.batch, claim.shard)
    missing = [line for line in lines if line.index not in claim.done]
    results = tuple(never_ran(line, code) for line in missing[: how_many(claim, missing)])
    for start in range(0, len(results), FILL_LINES):
        commit = ShardCommit(
            batch_id=batch_id,
            shard=shard,
            owner=claim.owner,
            num_lines=claim.shard.num_lines,
            results=results[start : start + FILL_LINES],
        )
        backend.shards.commit([commit])
    seal_shard(backend, claim)
    if len(results) < len(missing):
        backend.shards.release(claim, count_attempt=False)


def wind_up(backend: Backend, batch_id: str) -> None:
    """Bring a cancelled or expired batch to its end: every line that did not run is filled in."""
    with batch_lock(backend, batch_id) as lock:
        if lock is None:
            return
        _validate(backend, batch_id, lock)
        batch = backend.store.batch(batch_id)
        for shard in backend.shards.unsealed(batch_id) if batch.closing else ():
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
        segments = _segments(backend, batch)
        if segments is None:
            return
        if batch.kind == "job":
            to, writer = FINAL[batch.closing], segments[0][1].writer
            backend.store.move(batch_id, to, generation=batch.generation, segment_writer=writer)
        else:
            _end_with_files(backend, batch, segments, lock)
    _clean(backend, backend.store.batch(batch_id))


def _segments(backend: Backend, batch: Batch) -> Segments | None:
    """What was sealed of the batch, if that is all of it.

    In a user's own bucket files have one name, whoever writes them. So that all write the same there, no crash of Redis
    may take a seal back by then.
    """
    segments = backend.shards.segments(batch.id)
    if batch.output_prefix is not None:
        backend.store.make_durable()
        if backend.shards.segments(batch.id) != segments:
            return None
    return segments if batch.num_shards and len(segments) >= batch.num_shards else None


def _end_with_files(backend: Backend, batch: Batch, segments: Segments, lock: Lock) -> None:
    """Whoever is not the one to end it leaves nothing behind."""
    at = batch.results_by(owner_id())
    has_ended = False
    try:
        made = publish(backend, batch, segments, at, lock)
        has_ended = backend.store.end(batch, FINAL[batch.closing], made.files.values(), results_name=at, **made.fields)
    finally:
        if not has_ended:
            discard(backend, batch, at)


def _clean(backend: Backend, batch: Batch) -> None:
    """An ended batch needs neither shards nor segments; an ended job keeps its answer while it may be polled.

    Who asked to hear of its end is put in line before it is forgotten, so that a death in between loses nothing.
    """
    if batch.status not in ENDED:
        return
    if batch.kind == "job":
        backend.job_blobs.delete(batch.input_blob)
        backend.redis.expire(batch_key(batch.id), backend.settings.job_ttl_s)
        for part in ("output", "error"):
            backend.job_blobs.keep(batch.segment_blob(0, part, batch.segment_writer), backend.settings.job_ttl_s)
    else:
        # If a crash of Redis took the end back, the batch would be ended again, from segments that are gone.
        backend.store.make_durable()
        batch = backend.store.batch(batch.id)
        if batch.status not in ENDED:  # A crash has taken it back, or it has been opened again.
            return
        announce(backend, batch)
        _delete_segments(backend, batch)
        sweep_drafts(backend, batch)
        _settle(backend, batch)
    # Before it is forgotten: whoever dies here leaves it to the next to clean. What has been opened again holds anew.
    if backend.store.batch(batch.id).generation == batch.generation:
        backend.quotas.give_back(batch.tenant, batch.id)
    if backend.shards.drop(batch) == "first":
        tell_of_end(backend.traces, batch)  # Who dies here leaves a hole in a trace, and nothing else undone.


def _delete_segments(backend: Backend, batch: Batch) -> None:
    """Also what a process that died has left of earlier generations. Later ones are not this one's business."""
    for generation in range(batch.generation + 1):
        earlier = replace(batch, generation=generation)
        for key in backend.blobs.list(earlier.segments_folder):
            backend.blobs.delete(key)
        _drop_copy(backend, earlier)
    forget_lists(backend, batch)


def _settle(backend: Backend, batch: Batch) -> None:
    """Charge the batch for what it has used, and learn from it for the estimates of others."""
    backend.store.learn_answer_tokens(batch)
    for progress in progress_of(backend.store, [batch.id]):
        if progress.status in ENDED:
            backend.lineups.settle(progress)
