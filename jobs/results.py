"""Reading a batch's results while it runs, and on after its end: each line once, in the order in which they are run.

Who has read N lines goes on after N; what follows is given as far as it has finished without a gap. While the batch
runs, lines come from the spools and segments of its shards, and after its end from its files, by their index.
Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from .backend import Backend
from .errors import BlobMissing, Conflict, NotFound, UserError
from .frontier import Place, arrived, locate
from .line_index import indexed_lines, lines_from, read_order
from .lines import split_label
from .records import DEFAULT_TENANT, ENDED, Batch, Segment, Shard
from .submit import find_batch

__all__ = ["Place", "ResultPage", "arrived", "read_results"]

MAX_PAGE_BYTES = 4 * 2**20
# Lines of an ended arranged batch are read one by one.
MAX_SCATTERED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPage:
    """Finished lines, without newlines; `next` is how many have been read with them.

    After `is_last` nothing follows. What is not `settled` could be taken back by a crash of the Redis process
    `server_run`, and so is to be shown only once that has it on disk. `missing` is what to wait for where lines ended.
    """

    lines: tuple[bytes, ...]
    next: int
    is_last: bool
    settled: bool
    server_run: str
    missing: Place


def read_results(backend: Backend, batch_id: str, after: int, limit: int, tenant: str = DEFAULT_TENANT) -> ResultPage:
    """At most `limit` lines behind the first `after`, and not much more than `MAX_PAGE_BYTES`."""
    server_run = backend.store.server_run()
    batch = find_batch(backend, batch_id, tenant)
    if batch.num_shards and after > batch.counts.total:
        message = f"Invalid value for 'after_line': the batch has {batch.counts.total} lines, not {after}."
        raise UserError(message, param="after_line", code="invalid_value")
    missing = Place(batch_id=batch.id, status=batch.status)
    has_ended = batch.status in ENDED
    if batch.generation and not has_ended:
        lines: tuple[bytes, ...] = ()  # Who has read an earlier generation begins again, at its end.
    elif has_ended:
        lines = tuple(_within(_of_files(backend, batch, after, limit)))
    else:
        running = _Running(backend, batch, after)
        lines = tuple(_within(islice(running, limit)))
        missing = running.missing or missing
    # An earlier generation has left files also where this one came to nothing.
    has_lines = batch.num_shards > 0 or batch.generation > 0
    is_last = after + len(lines) >= batch.counts.total if has_lines else has_ended
    return ResultPage(
        lines=lines,
        next=after + len(lines),
        is_last=is_last,
        # The shards are dropped once the end is on disk.
        settled=not lines or (has_ended and locate(backend.shards, batch.id, 0) is None),
        server_run=server_run,
        missing=missing,
    )


class _Running:
    """The lines of a running batch from one on, up to the first that has not finished: that is then `missing`."""

    def __init__(self, backend: Backend, batch: Batch, line: int) -> None:
        self._backend, self._batch, self._line = backend, batch, line
        self._blobs = backend.blobs_of(batch)
        self.missing: Place | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            while self._batch.num_shards and self._line < self._batch.counts.total and self.missing is None:
                for line in self._of_shard():
                    self._line += 1
                    yield line
        except BlobMissing:
            return  # The batch has ended meanwhile; or it is arranged, and its order was not noted.

    def _of_shard(self) -> Iterator[bytes]:
        """The finished lines of one shard."""
        for _ in range(2):  # It may be sealed, and its spool dropped, between the two questions.
            found = locate(self._backend.shards, self._batch.id, self._line)
            if found is None:
                raise BlobMissing(f"shards of {self._batch.id}")
            shard, segment = found
            if segment is not None:
                yield from islice(self._sealed(shard, segment), self._line - shard.first_line, None)
                return
            indices = self._indices(shard)[self._line - shard.first_line :]
            spool = {index: data for index, _, data in self._backend.shards.spool(self._batch.id, shard.index)}
            if indices[0] in spool:
                break
        for index in indices:
            if index not in spool:
                batch = self._batch
                self.missing = Place(batch_id=batch.id, status=batch.status, shard=shard.index, index=index)
                return
            yield spool[index]

    def _indices(self, shard: Shard) -> Sequence[int]:
        """The places in the file of a shard's lines, in the order in which they are run."""
        if self._batch.arranged:
            return read_order(self._blobs, self._batch, shard.first_line, shard.num_lines)
        return range(shard.first_line, shard.first_line + shard.num_lines)

    def _sealed(self, shard: Shard, segment: Segment) -> Iterator[bytes]:
        sizes = {"output": segment.output, "error": segment.error}
        parts = {
            name: lines_from(self._blobs, self._batch.segment_blob(shard.index, name, segment.writer))  # type: ignore[arg-type]
            for name, size in sizes.items()
            if size
        }
        if self._batch.arranged:
            found = dict(split_label(raw) for lines in parts.values() for raw in lines)
            yield from (found[index] for index in self._indices(shard))
            return
        if not segment.is_mapped:
            raise _unreadable(self._batch)
        for i in range(shard.num_lines):
            yield next(parts["error" if segment.is_error(i) else "output"])


def _of_files(backend: Backend, batch: Batch, after: int, limit: int) -> Iterator[bytes]:
    files = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
    if not files or after >= batch.counts.total:
        return
    try:
        for file_id in files:
            backend.store.file(file_id)
    except NotFound as error:
        message = f"The results of '{batch.id}' are gone: one of its files was deleted or has expired."
        raise NotFound(message, param="batch_id", code="results_deleted") from error
    try:
        yield from indexed_lines(backend.blobs, batch, after, min(limit, MAX_SCATTERED) if batch.arranged else limit)
    except BlobMissing as error:
        raise _unreadable(batch) from error


def _unreadable(batch: Batch) -> Conflict:
    return Conflict(
        f"'{batch.id}' was begun by an earlier version, which did not note where its lines are. "
        "Download its output_file_id and error_file_id instead, once it has ended.",
        param="batch_id",
        code="results_not_indexed",
    )


def _within(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The first lines, of which all but the last come to less than a page."""
    size = 0
    for line in lines:
        yield line
        size += len(line)
        if size >= MAX_PAGE_BYTES:
            return
