"""How far a running batch has got, line by line: where a line is to be found, and whether it has come. Changes nothing.

Lines are told by their 0-based place in the order in which the batch is run. Knows nothing of blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .records import BatchStatus, Segment, Shard
from .redis_keys import batch_key
from .shards import Shards, parse_segment, parse_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a reader waits for: a line's result in a shard (`index` is its place in the file), or another status."""

    batch_id: str
    status: BatchStatus
    shard: int | None = None
    index: int = 0


def locate(shards: Shards, batch_id: str, line: int) -> tuple[Shard, Segment | None] | None:
    """The shard that holds a line, and its segment if it is sealed; None where the batch has no shards."""
    base = batch_key(batch_id)
    reply: Any = shards.scripts["locate"](keys=[f"{base}:shards", f"{base}:sealed"], args=[line])
    if reply is None:
        return None
    index, geometry, sealed = reply
    return parse_shard(index, geometry), parse_segment(sealed) if sealed else None


def arrived(shards: Shards, places: Sequence[Place]) -> list[bool]:
    """Whether there is something new for who waits, for many in one round trip."""
    pipe = shards.redis.pipeline(transaction=False)
    for place in places:
        base = batch_key(place.batch_id)
        pipe.hget(base, "status")
        pipe.hexists(f"{base}:sealed", str(place.shard))
        pipe.hexists(f"{base}:spool:{place.shard}", str(place.index))
    replies = iter(pipe.execute())
    return [
        status != place.status.encode() or bool(sealed) or bool(spooled)
        for place, (status, sealed, spooled) in zip(places, zip(replies, replies, replies, strict=True), strict=True)
    ]
