"""What clients may do with an ended batch: have lines of it run again, as its next generation.

Its next files hold each line once, in input order; those that were published before stay as they are. Raises NotFound,
Conflict and UserError. `reopening.py` does what takes long.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

from . import ids
from .backend import Backend
from .deliveries import announce
from .errors import Conflict, NotFound, QuotaExceeded, UserError
from .fields import as_text
from .records import DEFAULT_TENANT, Batch
from .redis_keys import ACTIVE, CARE
from .reopening import FAILED, custom_id_of, list_folder, requests_in
from .shards import shard_keys
from .submit import find_batch, parse_window

MOST_NAMED = 10_000  # Lines in one request.


def retry_batch(
    backend: Backend, batch_id: str, lines: Literal["failed"] | Sequence[str], tenant: str = DEFAULT_TENANT
) -> Batch:
    """Open an ended batch again, to run the lines of its error file or those with the given custom_ids."""
    batch = find_batch(backend, batch_id, tenant)
    if batch.status not in ("completed", "expired", "cancelled"):
        raise Conflict(f"Cannot retry a batch with status '{batch.status}'.")
    _check_files(backend, batch)
    if lines == FAILED:
        if batch.error_file_id is None:
            raise UserError("No line of this batch has failed.", param="lines", code="invalid_value")
        wanted = FAILED
    else:
        _check_names(backend, batch, lines)
        wanted = list_folder(batch.id, batch.generation + 1) + "/" + ids.new_id("lines-")
        backend.blobs.put(wanted, [json.dumps(list(lines)).encode()])
    _take_room(backend, batch, lines)
    announce(backend, batch)  # Whoever ended it may have died before it told of that.
    _reopen(backend, batch, wanted)
    backend.store.make_durable()
    return backend.store.batch(batch_id)


def _take_room(backend: Backend, batch: Batch, lines: Literal["failed"] | Sequence[str]) -> None:
    """What the lines will hold of the tenant's limits, or QuotaExceeded. Given back when the batch has ended again."""
    num_lines = batch.counts.failed + batch.counts.unrun if lines == FAILED else len(lines)
    tokens = math.ceil(batch.estimated_tokens * num_lines / max(1, batch.counts.total))
    backend.quotas.open_batch(batch.tenant, batch.id)
    refusal = backend.quotas.take_tokens(batch, batch.model or "", tokens)
    if refusal is not None:
        backend.quotas.give_back(batch.tenant, batch.id)
        raise QuotaExceeded(refusal.message, code=refusal.code)


def _reopen(backend: Backend, batch: Batch, wanted: str) -> None:
    args: list[Any] = [
        batch.id,
        batch.generation,
        int(time.time()),
        parse_window(batch.completion_window),
        ids.file_id(),
        ids.file_id(),
        wanted,
    ]
    keys = [*shard_keys(batch.id, "batch"), ACTIVE["batch"], CARE["batch"], *backend.shards.kept_keys(batch.id)]
    status = backend.store.scripts["reopen"](keys=keys, args=args)
    if status is None or as_text(status):
        if wanted != FAILED:
            backend.blobs.delete(wanted)
        raise Conflict(f"Cannot retry a batch with status '{as_text(status or b'gone')}'.")


def _check_files(backend: Backend, batch: Batch) -> None:
    """What a batch is made of and has come to must be there still."""
    for file_id in filter(None, (batch.input_file_id, batch.output_file_id, batch.error_file_id)):
        try:
            backend.store.file(file_id)
        except NotFound as error:
            message = f"Cannot retry the batch: its file '{file_id}' has been deleted or has expired."
            raise Conflict(message, param="id", code="file_deleted") from error


def _check_names(backend: Backend, batch: Batch, names: Sequence[str]) -> None:
    if not names or len(names) > MOST_NAMED:
        message = f"Invalid value for 'lines': expected \"failed\" or 1 to {MOST_NAMED} custom_ids, not {len(names)}."
        raise UserError(message, param="lines", code="invalid_value")
    unknown = set(names)
    for _, raw in requests_in(backend, batch):
        unknown.discard(custom_id_of(raw))
        if not unknown:
            return
    message = f"The batch has no line with the custom_id '{min(unknown)}'."
    raise UserError(message[:500], param="lines", code="invalid_value")
