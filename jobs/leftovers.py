"""Segments that nobody will join: whoever wrote them had lost the shard by then, and died before deleting them.

A batch's end deletes all that lies in its folder; these came later. Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from .backend import Backend
from .errors import NotFound
from .records import ENDED


def sweep_segments(backend: Backend) -> None:
    """Delete the segments of batches that are over and cleaned up. What this Redis knows nothing of is left alone."""
    for batch_id, keys in _by_batch(backend.blobs.list("segments")):
        # Listed before it is asked: of a batch that is opened again meanwhile only what was there before goes.
        if _is_over(backend, batch_id):
            for key in keys:
                backend.blobs.delete(key)


def _by_batch(keys: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """The keys of each batch, whatever their generation (`Batch.name`)."""
    for batch_id, found in groupby(keys, key=lambda key: key.split("/")[1].partition(".")[0]):
        yield batch_id, list(found)


def _is_over(backend: Backend, batch_id: str) -> bool:
    try:
        status = backend.store.batch(batch_id).status
    except NotFound:
        return False
    return status in ENDED and not backend.store.is_active(batch_id)
