"""Opening an ended batch again: its lines sorted into those that run again and those whose results are kept.

What is kept, is taken from the generation's files before and counts as a shard that is sealed already; what runs again
is copied, like an arranged batch, into a file of its own. Names carry the generation, so that nobody who is late from
an earlier one can touch them. Knows nothing of clients.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from .backend import Backend
from .errors import BlobMissing, Conflict
from .lines import label, split_lines
from .records import Batch, Counts, ErrorCount, LineError, Part, Segment, Shard
from .shards import KEPT_SHARD, Kept

FAILED = "failed"
CHUNK = 2**20
ANY_LENGTH = 2**62  # What was taken once is not judged again.


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """The shards to run, and what is kept beside them."""

    shards: tuple[Shard, ...]
    kept: Kept


@dataclass(slots=True)
class _Sorted:
    """Lines of the batch sorted into those to run and those to keep, each behind its place in the input."""

    again: IO[bytes]
    output: IO[bytes]
    error: IO[bytes]
    sizes: list[int] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    unrun: int = 0
    errors: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    messages: dict[tuple[str, str | None], str] = field(default_factory=dict)


def sort_lines(backend: Backend, batch: Batch, renew: Callable[[], None], scratch: Path) -> Reopened:
    """Write what a reopened batch is run from, and what is kept. A second time writes the same.

    `renew` is called as it goes. Passes the files through temporary ones in the folder `scratch`. Raises BlobMissing
    where the batch's files have been deleted meanwhile.
    """
    with ExitStack() as stack:
        again, output, error = (stack.enter_context(tempfile.TemporaryFile(dir=scratch)) for _ in range(3))
        found = _Sorted(again=again, output=output, error=error)
        for _ in _sort(backend, batch, found):
            renew()
        if not found.sizes:
            raise Conflict("There is no line to run again.")
        backend.blobs.put(batch.arranged_blob, _chunks(found.again, renew))
        shards = _cut(found.sizes, backend.settings.shard_lines)
        sizes = {}
        for part, file in (("output", found.output), ("error", found.error)):
            wanted = _chunks(file, renew) if file.tell() else None
            name = replace(batch, arranged=True).segment_blob(KEPT_SHARD, part)  # type: ignore[arg-type]
            sizes[part] = backend.blobs.put(name, wanted) if wanted else 0
    counts = Counts(completed=found.completed, failed=found.failed, unrun=found.unrun)
    segment = Segment(output=sizes["output"], error=sizes["error"]) if any(sizes.values()) else None
    return Reopened(shards=shards, kept=Kept(segment=segment, counts=counts, errors=_counted(found)))


def _sort(backend: Backend, batch: Batch, found: _Sorted) -> Iterator[None]:
    """Put every line of the input where it belongs: its result is the next in one of the two files."""
    named = _named(backend, backend.store.retry_of(batch.id))
    results = {part: _Results(backend, blob) for part, blob in _files(batch)}
    for index, raw in requests_in(backend, batch):
        name = custom_id_of(raw)
        part = next((part for part, result in results.items() if result.custom_id == name), None)
        data = results[part].take() if part else b""
        if part is None or (part == "error" if named is None else name in named):
            found.sizes.append(found.again.write(label(index) + raw + b"\n"))
        else:
            _keep(found, part, index, data)
        yield


def _keep(found: _Sorted, part: Part, index: int, data: bytes) -> None:
    (found.output if part == "output" else found.error).write(label(index) + data + b"\n")
    if part == "output":
        found.completed += 1
        return
    why = _why(json.loads(data))
    if why is None:
        found.unrun += 1
        return
    found.failed += 1
    found.errors[why.code, why.param] += 1
    found.messages.setdefault((why.code, why.param), why.message)


def _why(line: dict[str, Any]) -> LineError | None:
    """Why a line of the error file failed; None for one that did not run."""
    said = line["error"] or line["response"]["body"]["error"]
    if said["code"] in ("batch_cancelled", "batch_expired"):
        return None
    code = said["code"] or str(line["response"]["status_code"])
    return LineError(code=code, message=said["message"], param=said.get("param"))


def _counted(found: _Sorted) -> tuple[ErrorCount, ...]:
    return tuple(
        ErrorCount(code=code, param=param, message=found.messages[code, param], count=count)
        for (code, param), count in found.errors.most_common()
    )


class _Results:
    """The lines of a result file, one after another; there is always the `custom_id` of the next one."""

    def __init__(self, backend: Backend, blob: str | None) -> None:
        chunks: Iterable[bytes] = backend.blobs.open(blob) if blob else ()
        self._lines = (raw for _, raw in split_lines(chunks, longest=ANY_LENGTH))
        self._advance()

    def take(self) -> bytes:
        """The next line."""
        data = self._next
        assert data is not None
        self._advance()
        return data

    def _advance(self) -> None:
        self._next = next(self._lines, None)
        self.custom_id = None if self._next is None else custom_id_of(self._next)


def _files(batch: Batch) -> tuple[tuple[Part, str | None], ...]:
    return (
        ("output", batch.result_blob("output") if batch.output_file_id else None),
        ("error", batch.result_blob("error") if batch.error_file_id else None),
    )


def requests_in(backend: Backend, batch: Batch) -> Iterator[tuple[int, bytes]]:
    """The lines of the input that are no blank ones, by their places."""
    try:
        chunks = backend.blobs.open(batch.input_blob)
    except BlobMissing as error:
        message = f"Cannot retry the batch: its file '{batch.input_file_id}' has been deleted."
        raise Conflict(message, param="id", code="file_deleted") from error
    lines = (raw for _, raw in split_lines(chunks, longest=ANY_LENGTH) if raw.strip())
    return enumerate(lines)


def custom_id_of(raw: bytes) -> str:
    return str(json.loads(raw)["custom_id"])


def _named(backend: Backend, wanted: str) -> set[str] | None:
    """The custom_ids of the lines that are to run; None for those that failed."""
    if wanted == FAILED:
        return None
    return set(json.loads(b"".join(backend.blobs.open(wanted))))


def _cut(sizes: Sequence[int], shard_lines: int) -> tuple[Shard, ...]:
    shards, offset = list[Shard](), 0
    for first in range(0, len(sizes), shard_lines):
        part = sizes[first : first + shard_lines]
        shards.append(Shard(index=len(shards), first_line=first, num_lines=len(part), offset=offset, size=sum(part)))
        offset += sum(part)
    return tuple(shards)


def _chunks(file: IO[bytes], renew: Callable[[], None]) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        renew()
        yield chunk


def list_folder(batch_id: str, generation: int) -> str:
    """The folder of the lists of lines that a generation was asked to run."""
    return f"retries/{batch_id}.{generation}"


def forget_lists(backend: Backend, batch: Batch) -> None:
    """Delete the lists of lines that this generation, and those before it, were asked to run."""
    for generation in range(1, batch.generation + 1):
        for key in backend.blobs.list(list_folder(batch.id, generation)):
            backend.blobs.delete(key)
