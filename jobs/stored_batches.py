"""Batches and native jobs in Redis: created, read, listed, and moved from status to status.

Every change of a batch's state is one script, so that a process may die between any two calls. Knows nothing of
shards (`shards.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from .connection import Connection
from .errors import NotFound
from .fields import as_text, batch_fields, file_fields, parse_batch
from .ids import new_id
from .records import DEFAULT_TENANT, ENDED, MOVES, Batch, BatchError, BatchStatus, File, Page
from .redis_keys import ACTIVE, CARE, FILE_EXPIRY, SEQUENCE, batch_key, batch_list, file_key, file_list, stored_key


class StoredBatches(Connection):
    """The batches and jobs of all tenants. Thread-safe; every method is one or a few round trips."""

    def create_batch(self, batch: Batch) -> bool:
        """Write a new batch; on return it survives the death of this process and of Redis' (where AOF is on).

        One that is there stays as it is, however far it has come, and the answer is False.
        """
        listed = batch.kind == "batch"
        place: Any = self.redis.incr(SEQUENCE) if listed else None
        pipe = self.redis.pipeline(transaction=False)
        fields = [part for pair in batch_fields(batch).items() for part in pair]
        self.scripts["create"](keys=[batch_key(batch.id)], args=fields, client=pipe)
        if listed:
            pipe.zadd(batch_list(batch.tenant), {batch.id: place}, nx=True)
        # Last: what is found here runs.
        pipe.zadd(ACTIVE[batch.kind], {batch.id: batch.expires_at})
        pipe.zadd(CARE[batch.kind], {batch.id: 0})
        is_new: bool = pipe.execute()[0] == 1
        if listed:
            self.make_durable()
        return is_new

    def batch(self, batch_id: str) -> Batch:
        """The batch or job, or NotFound."""
        fields = self.redis.hgetall(batch_key(batch_id))
        if not fields:
            raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
        return parse_batch(fields)

    def batches(self, *, tenant: str = DEFAULT_TENANT, limit: int = 20, after: str | None = None) -> Page[Batch]:
        """A tenant's batches, newest first, beyond the batch `after`; native jobs are not listed."""
        ids = self.page(batch_list(tenant), limit + 1, True, after)
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in ids[:limit]:
            pipe.hgetall(batch_key(batch_id))
        return Page(items=[parse_batch(fields) for fields in pipe.execute() if fields], has_more=len(ids) > limit)

    def move(self, batch_id: str, to: BatchStatus, *, generation: int | None = None, **fields: str) -> bool:
        """Move a batch along `MOVES`, writing `fields` with it.

        False if it was in a status that forbids it, or is not of the `generation` that is meant. An end is an event,
        whose id is written in the same moment: whoever cares for the ended batch tells of it.
        """
        if to in ENDED:
            fields["event_id"] = new_id("evt_")
        origins = [origin for origin, allowed in MOVES.items() if to in allowed]
        pairs = [part for pair in fields.items() for part in pair]
        meant = "" if generation is None else generation
        args = [to, int(time.time()), ",".join(origins), meant, *pairs]
        was = self.scripts["move"](keys=[batch_key(batch_id)], args=args)
        if was is None:
            raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
        return as_text(was) in origins

    def end(self, batch: Batch, to: BatchStatus, files: Iterable[File], **fields: str) -> bool:
        """Move a batch to its end, as `move` does, and show its files in the same moment.

        False if it has ended already, or is of another generation: then nothing of `files` was written down.
        """
        fields["event_id"] = new_id("evt_")
        origins = [origin for origin, allowed in MOVES.items() if to in allowed]
        pairs = [part for pair in fields.items() for part in pair]
        args = [to, int(time.time()), ",".join(origins), batch.generation, len(pairs), *pairs]
        keys = [batch_key(batch.id), file_list(batch.tenant), SEQUENCE, FILE_EXPIRY, stored_key(batch.tenant)]
        for file in files:
            described = [part for pair in file_fields(file).items() for part in pair]
            args += [file.id, file.bytes, file.expires_at or "", len(described), *described]
            keys.append(file_key(file.id))
        was = self.scripts["end"](keys=keys, args=args)
        if was is None:
            raise NotFound(f"No batch found with id '{batch.id}'.", param="id")
        return as_text(was) in origins

    def fail(
        self,
        batch_id: str,
        errors: Iterable[BatchError],
        total: int,
        *,
        to: BatchStatus = "failed",
        generation: int | None = None,
    ) -> None:
        """End a batch whose input cannot be run."""
        text = json.dumps([asdict(error) for error in errors])
        self.move(batch_id, to, generation=generation, errors=text, total=str(total))

    def retry_of(self, batch_id: str) -> str:
        """Which lines a batch was opened again for, as `reopen.lua` has noted it."""
        return as_text(self.redis.hget(batch_key(batch_id), "retry") or "")
