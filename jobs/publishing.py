"""The files of a batch whose shards are all sealed: its segments joined in the order of its input, and their index.

Whoever ends a batch writes files of its own, and the script that ends it says whose they are: so nobody who is late
writes over them. Knows nothing of what becomes of the batch then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time

from redis.lock import Lock

from .arranging import in_file_order
from .backend import Backend
from .errors import BlobMissing
from .line_index import Places, block_index, read_order
from .locks import renew, while_locked
from .places import deliver
from .records import Batch, File, Part, Segment

MAX_ERROR = 500
Segments = Sequence[tuple[int, Segment]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The files of a batch, by their parts, as they are to be shown once it has ended; and why those that were wanted
    elsewhere could not be put there, or ''.
    """

    files: dict[Part, File]
    delivery_error: str

    @property
    def fields(self) -> dict[str, str]:
        """The batch's fields; '' for what there is not, because an earlier generation may have had it."""
        ids = {f"{part}_file_id": file.id for part, file in self.files.items()}
        return {"output_file_id": "", "error_file_id": "", "delivery_error": self.delivery_error} | ids


def publish(backend: Backend, batch: Batch, segments: Segments, at: str, lock: Lock) -> Published:
    """Write the output and the error file, if there is anything in them, and put them where else they are wanted.

    `at` begins the names of all that is written; no other writer has the same.
    """
    places = Places(batch.counts.total if batch.arranged else 0)
    files = {}
    parts: tuple[Part, ...] = ("output", "error")
    for part in parts:
        pieces = [(batch.segment_blob(shard, part, found.writer), getattr(found, part)) for shard, found in segments]
        pieces = [(key, size) for key, size in pieces if size]
        if pieces:
            if batch.arranged:
                size = _arrange(backend, part, [key for key, _ in pieces], f"{at}.{part}", places, lock)
            else:
                size = backend.blobs.join(while_locked(pieces, lock), f"{at}.{part}")
            renew(lock)
            files[part] = _file(batch, part, f"{at}.{part}", size)
    index = _index(backend, batch, segments, places)
    if index is not None:
        backend.blobs.put(f"{at}.index", while_locked(index, lock))
    error = deliver(backend, batch, [(file.filename, file.blob) for file in files.values()], lock)
    return Published(files=files, delivery_error=(error or "")[:MAX_ERROR])


def discard(backend: Backend, batch: Batch, at: str) -> None:
    """Delete what was written at `at`, unless the batch has ended with it.

    The files tell: by now it may have been opened again, and have others.
    """
    known = map(backend.store.known_file, (batch.reserved_output_id, batch.reserved_error_id))
    if not any(file is not None and file.stored_as.startswith(f"{at}.") for file in known):
        for part in ("output", "error", "index"):
            backend.blobs.delete(f"{at}.{part}")


def sweep_drafts(backend: Backend, batch: Batch) -> None:
    """Delete what others have written, and died, of the files of a generation that has ended for good."""
    for key in backend.blobs.list(batch.results_folder):
        if not batch.results_name or not key.startswith(f"{batch.results_name}."):
            backend.blobs.delete(key)


def scratch_folder(backend: Backend) -> Path:
    """A folder for temporary files that may become as large as a batch's files."""
    backend.settings.data_dir.mkdir(parents=True, exist_ok=True)
    return backend.settings.data_dir


def _arrange(backend: Backend, part: Part, keys: list[str], target: str, places: Places, lock: Lock) -> int:
    """Write one file of an arranged batch in the order of its input; its size."""

    def open_segment(key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        renew(lock)
        return backend.blobs.open(key, offset, size)

    lines = in_file_order(keys, open_segment, scratch_folder(backend))
    passing = places.passing(lines, is_error=part == "error")
    return backend.blobs.put(target, while_locked(passing, lock))


def _filename(batch: Batch, part: Part) -> str:
    """In a user's own folder the files of an earlier generation stay as they are."""
    return f"{batch.name}_{part}.jsonl"


def _file(batch: Batch, part: Part, blob: str, size: int) -> File:
    now = int(time())
    return File(
        id=batch.reserved_output_id if part == "output" else batch.reserved_error_id,
        bytes=size,
        created_at=now,
        filename=_filename(batch, part),
        purpose="batch_output",
        expires_at=None if batch.output_ttl_s is None else now + batch.output_ttl_s,
        tenant=batch.tenant,
        stored_as=blob,
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
