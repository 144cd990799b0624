"""Sealing: a shard whose lines are all committed becomes a segment in the blob store, and its spool is dropped.

May be done twice: a segment is its writer's alone, and one script says whose counts. Knows nothing of RQ, nor of what
the lines say.
"""

from __future__ import annotations

from collections.abc import Iterable

from .backend import Backend
from .finish import end_batch
from .lines import label
from .records import Claim, Segment


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
