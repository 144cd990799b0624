"""Lines that will never run: they become error lines, so that every shard is sealed and every batch comes to its end.

Each step is done under a claim of the shard, or the lock of the batch, and may be done twice. Knows nothing of RQ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .backend import Backend
from .beginning import begin
from .finish import end
from .ids import owner_id
from .lines import never_ran, requests_of
from .locks import batch_lock, renew
from .records import Claim, Line, ShardCommit
from .sealing import seal_shard
from .suspects import portion

FILL_LINES = 500


def wind_up(backend: Backend, batch_id: str) -> None:
    """Bring a cancelled or expired batch to its end: every line that did not run is filled in."""
    with batch_lock(backend, batch_id) as lock:
        if lock is None:
            return
        begin(backend, batch_id, lock)
        batch = backend.store.batch(batch_id)
        for shard in backend.shards.unsealed(batch_id) if batch.closing else ():
            renew(lock)
            fill_shard(backend, batch_id, shard, f"batch_{batch.closing}")
        end(backend, batch_id, lock)


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
