"""The store: files, batches and models in Redis, and what concerns more than one of them.

`shards.py` keeps what lies below a batch. Knows nothing of blobs or HTTP.
"""

from __future__ import annotations

from redis import Redis

from .care import Care
from .errors import Conflict
from .fields import as_text
from .model_cards import ModelCards
from .records import ENDED, Batch, Tenant
from .redis_keys import ACTIVE, batch_key
from .stored_batches import StoredBatches
from .stored_files import StoredFiles
from .tenants import Tenants


class Store(StoredFiles, StoredBatches, Care, ModelCards):
    """Objects that clients see. Thread-safe; every method is one or a few round trips."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.tenants = Tenants(redis, self.scripts)

    def tenant(self, name: str) -> Tenant:
        """What a tenant gets, and what it may hold at most."""
        return self.tenants.get(name)

    def cancel(self, batch_id: str) -> Batch:
        """Ask a batch to end; on return that survives, as `create_batch` does. Repeating it is harmless.

        Raises Conflict where the batch has ended otherwise.
        """
        self.move(batch_id, "cancelling", closing="cancelled")
        batch = self.batch(batch_id)
        if batch.kind == "batch" and batch.status not in ENDED:
            self.look_at(batch_id)
        if batch.status in ENDED and batch.status != "cancelled":
            raise Conflict(f"Cannot cancel a {batch.kind} with status '{batch.status}'.")
        if batch.kind == "batch":
            self.make_durable()
        return batch

    def inputs_in_use(self) -> set[str]:
        """Ids of the files that batches which have not ended are made of."""
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in self.active("batch"):
            # One that was opened again is also made of what it had come to before.
            pipe.hmget(batch_key(batch_id), "input_file_id", "output_file_id", "error_file_id")
        return {as_text(raw) for found in pipe.execute() for raw in found if raw}

    def request_stats(self) -> dict[str, int]:
        """Numbers for /health: what is known and not yet ended."""
        return {"active": sum(self.redis.zcard(key) for key in ACTIVE.values())}
