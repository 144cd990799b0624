"""The files of a batch whose shards are all sealed: its segments joined in the order of its input, and their index.

Doing it again writes the same under the same names. Knows nothing of what becomes of the batch then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time
from typing import Literal

from redis.lock import Lock

from .arranging import in_file_order
from .backend import Backend
from .errors import BlobMissing
from .line_index import Places, block_index, read_order
from .locks import renew, while_locked
from .places import deliver
from .records import Batch, File, Segment

Part = Literal["output", "error"]
MAX_ERROR = 500
Segments = Sequence[tuple[int, Segment]]


def publish(backend: Backend, batch: Batch, segments: Segments, lock: Lock) -> dict[str, str]:
    """Write the output and the error file, if there is anything in them, and put them where else they are wanted.

    Returns the batch's fields: their ids, and `delivery_error` where they could not be put there; '' for what there is
    not, because an earlier generation may have had it.
    """
    places = Places(batch.counts.total if batch.arranged else 0)
    reserved: dict[Part, str] = {"output": batch.reserved_output_id, "error": batch.reserved_error_id}
    files = {}
    for part, file_id in reserved.items():
        pieces = [(batch.segment_blob(shard, part, found.writer), getattr(found, part)) for shard, found in segments]
        pieces = [(key, size) for key, size in pieces if size]
        if pieces:
            if batch.arranged:
                size = _arrange(backend, part, [key for key, _ in pieces], file_id, places, lock)
            else:
                size = backend.blobs.join(while_locked(pieces, lock), f"files/{file_id}")
            renew(lock)
            _add_file(backend, batch, part, file_id, size)
            files[f"{part}_file_id"] = file_id
    index = _index(backend, batch, segments, places)
    if index is not None:
        backend.blobs.put(f"files/{next(iter(files.values()))}.index", while_locked(index, lock))
    named = [(_filename(batch, part), file_id) for part, file_id in reserved.items() if file_id in files.values()]
    error = deliver(backend, batch, named, lock)
    none = {"output_file_id": "", "error_file_id": ""}
    return none | files | {"delivery_error": (error or "")[:MAX_ERROR]}


def scratch_folder(backend: Backend) -> Path:
    """A folder for temporary files that may become as large as a batch's files."""
    backend.settings.data_dir.mkdir(parents=True, exist_ok=True)
    return backend.settings.data_dir


def _arrange(backend: Backend, part: Part, keys: list[str], file_id: str, places: Places, lock: Lock) -> int:
    """Write one file of an arranged batch in the order of its input; its size."""

    def open_segment(key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        renew(lock)
        return backend.blobs.open(key, offset, size)

    lines = in_file_order(keys, open_segment, scratch_folder(backend))
    passing = places.passing(lines, is_error=part == "error")
    return backend.blobs.put(f"files/{file_id}", while_locked(passing, lock))


def _filename(batch: Batch, part: Part) -> str:
    """In a user's own folder the files of an earlier generation stay as they are."""
    return f"{batch.name}_{part}.jsonl"


def _add_file(backend: Backend, batch: Batch, part: Part, file_id: str, size: int) -> None:
    now = int(time())
    backend.store.add_file(
        File(
            id=file_id,
            bytes=size,
            created_at=now,
            filename=_filename(batch, part),
            purpose="batch_output",
            expires_at=None if batch.output_ttl_s is None else now + batch.output_ttl_s,
            tenant=batch.tenant,
        )
    )


def _index(backend: Backend, batch: Batch, segments: Segments, places: Places) -> Iterator[bytes] | None:
    """The index of a batch's files; None where it is not known which of its lines are in which."""
    if batch.arranged:
        return places.index(_order(backend, batch))
    if not all(segment.is_mapped for _, segment in segments):
        return None
    shards = backend.shards.geometry(batch.id)
    return iter([block_index((shards[shard].num_lines, segment) for shard, segment in segments)])


def _order(backend: Backend, batch: Batch) -> Sequence[int]:
    """The order in which the lines of an arranged batch are read: its file's, where none was noted as it began, as in
    every batch that was opened again.
    """
    try:
        return read_order(backend.blobs, batch)
    except BlobMissing:
        return range(batch.counts.total)
