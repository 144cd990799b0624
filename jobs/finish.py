"""The end of a batch whose shards are all sealed: its files are published, and what it held is given back.

Every step may be done twice and gives the same: files are their writers' alone, and one script says whose are shown.
One process at a time ends a given batch (`batch_lock`). Knows nothing of RQ.
"""

from __future__ import annotations

from dataclasses import replace

from redis.lock import Lock

from .backend import Backend
from .beginning import drop_copy
from .deliveries import announce
from .ids import owner_id
from .locks import batch_lock
from .progress import progress_of
from .publishing import Segments, discard, publish, sweep_drafts
from .records import ENDED, FINAL, Batch
from .redis_keys import batch_key
from .reopening import forget_lists
from .traces import tell_of_end


def end_batch(backend: Backend, batch_id: str) -> None:
    """Join the segments of a batch whose shards are all sealed, publish its files, and clean up behind it."""
    with batch_lock(backend, batch_id) as lock:
        if lock is not None:
            end(backend, batch_id, lock)


def end(backend: Backend, batch_id: str, lock: Lock) -> None:
    """The same for who holds the batch's lock."""
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
        drop_copy(backend, earlier)
    forget_lists(backend, batch)


def _settle(backend: Backend, batch: Batch) -> None:
    """Charge the batch for what it has used, and learn from it for the estimates of others."""
    backend.store.learn_answer_tokens(batch)
    for progress in progress_of(backend.store, [batch.id]):
        if progress.status in ENDED:
            backend.lineups.settle(progress)
