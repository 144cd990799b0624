"""What clients may do to a batch on its way: pause it, let it go on, change its priority, give it more time.

Every change is one script, harmless to repeat. Raises NotFound, and Conflict where the batch is not in a state for it.
"""

from __future__ import annotations

from .backend import Backend
from .errors import Conflict, NotFound, UserError
from .fields import as_text
from .queue import forget_shards
from .records import DEFAULT_TENANT, Batch
from .redis_keys import ACTIVE, batch_key
from .shards import shard_keys
from .submit import find_batch, parse_window


def pause_batch(backend: Backend, batch_id: str, tenant: str = DEFAULT_TENANT) -> Batch:
    """Begin nothing more of a batch. Lines that are running finish; its window goes on, and validation too."""
    back = _set_paused(backend, batch_id, tenant, paused=True)
    batch = backend.store.batch(batch_id)
    # A worker that takes one of them all the same is given no claim.
    forget_shards(backend.redis, "batch", batch.model or "", batch_id, back)
    return batch


def resume_batch(backend: Backend, batch_id: str, tenant: str = DEFAULT_TENANT) -> Batch:
    """Let a paused batch go on, from where it stands."""
    _set_paused(backend, batch_id, tenant, paused=False)
    return backend.store.batch(batch_id)


def _set_paused(backend: Backend, batch_id: str, tenant: str, *, paused: bool) -> list[int]:
    find_batch(backend, batch_id, tenant)
    reply = backend.store.scripts["pause"](keys=shard_keys(batch_id, "batch", "waiting", "queued"), args=[int(paused)])
    if reply is None:
        raise _not_found(batch_id)
    status, _, done, back = reply
    if as_text(done) != "1":
        raise Conflict(f"Cannot {'pause' if paused else 'resume'} a batch with status '{as_text(status)}'.")
    backend.store.look_at(batch_id)
    return [int(shard) for shard in back]


def update_batch(
    backend: Backend,
    batch_id: str,
    *,
    priority: int | None = None,
    completion_window: str | None = None,
    tenant: str = DEFAULT_TENANT,
) -> Batch:
    """Change a batch's priority, or extend its window, which is told from its creation on."""
    find_batch(backend, batch_id, tenant)
    if priority is None and completion_window is None:
        raise UserError("Nothing to update: give 'priority' or 'completion_window'.", code="missing_required_parameter")
    seconds = 0 if completion_window is None else parse_window(completion_window)
    args = [batch_id, "" if priority is None else priority, completion_window or "", seconds]
    status = backend.store.scripts["update"](keys=[batch_key(batch_id), ACTIVE["batch"]], args=args)
    if status is None:
        raise _not_found(batch_id)
    if as_text(status) == "shorter":
        message = f"'{completion_window}' from the batch's creation ends before its present window: it can be extended."
        raise UserError(message, param="completion_window", code="invalid_value")
    if as_text(status) not in ("validating", "in_progress"):
        raise Conflict(f"Cannot update a batch with status '{as_text(status)}'.")
    backend.store.look_at(batch_id)
    return backend.store.batch(batch_id)


def _not_found(batch_id: str) -> NotFound:
    return NotFound(f"No batch found with id '{batch_id}'.", param="id")
