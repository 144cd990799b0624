"""The lines of a batch's files: reading requests, writing results. Sizes are bytes; nothing is held but one line.

Knows the shape of a line, and nothing of what its body asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .ids import passing_id
from .json_text import read, written
from .records import Batch, Line, LineError, LineResult, Shard, Usage

if TYPE_CHECKING:
    from .blobs import Blobs

ERROR_TEXTS = {
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
    "batch_expired": "This request could not be executed before the completion window expired.",
    "engine_crashed": "This request could not be executed: the engine crashed on it again and again.",
    "engine_hung": "This request could not be executed: the engine hung on it again and again.",
    "line_timeout": "This request could not be finished within its time: its own pressrun.timeout_s, or the service's "
    "PRESSRUN_MAX_LINE_SECONDS.",
    "worker_lost": "This request could not be executed: its worker was lost on every attempt.",
}
UNRUN = ("batch_cancelled", "batch_expired")


def split_lines(chunks: Iterable[bytes], *, longest: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its newline) for every line. A line longer than `longest` raises UserError."""
    offset, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield offset, line
            offset += len(line) + 1
        if len(rest) > longest:
            raise UserError(f"A line of the file is longer than {longest} bytes (PRESSRUN_MAX_LINE_BYTES).")
    if rest:
        yield offset, rest


def read_requests(chunks: Iterable[bytes], *, first: int, longest: int) -> Iterator[Line]:
    """The requests of a validated stretch of a batch file, numbered from `first`; blank lines do not count."""
    index = first
    for _, raw in split_lines(chunks, longest=longest):
        if not raw.strip():
            continue
        yield _line(index, raw)
        index += 1


def requests_of(blobs: Blobs, batch: Batch, shard: Shard) -> Iterator[Line]:
    """The requests of one shard, in the order in which they are to run."""
    chunks = blobs.open(batch.lines_blob, shard.offset, shard.size)
    if not batch.arranged:
        return read_requests(chunks, first=shard.first_line, longest=shard.size)
    return _read_arranged(chunks, longest=shard.size)


def _read_arranged(chunks: Iterable[bytes], *, longest: int) -> Iterator[Line]:
    for _, raw in split_lines(chunks, longest=longest):
        yield _line(*split_label(raw))


def _line(index: int, raw: bytes) -> Line:
    fields = read(raw)
    return Line(
        index=index,
        custom_id=fields["custom_id"],
        url=fields["url"],
        body=fields["body"],
        options=fields.get("pressrun"),
    )


def label(index: int) -> bytes:
    """What stands before a line of an arranged batch: its place among the batch's lines."""
    return b"%d\t" % index


def split_label(raw: bytes) -> tuple[int, bytes]:
    """The place of a line of an arranged batch, and the line."""
    place, _, line = raw.partition(b"\t")
    return int(place), line


def answered(line: Line, body: dict[str, Any], usage: Usage) -> LineResult:
    """A line that ran: a line of the output file."""
    return _responded(line, 200, body, "succeeded", usage)


def refused(line: Line, error: UserError) -> LineResult:
    """A line whose request cannot be served: an HTTP failure in the error file."""
    why = LineError(code=error.code or str(error.status), message=error.message, param=error.param)
    return _responded(line, error.status, error.body(), "failed", Usage(), why)


def _responded(
    line: Line, status: int, body: dict[str, Any], outcome: Any, usage: Usage, why: LineError | None = None
) -> LineResult:
    response = {"status_code": status, "request_id": passing_id("req_"), "body": body}
    return LineResult(index=line.index, outcome=outcome, data=_output(line, response, None), usage=usage, error=why)


def never_ran(line: Line, code: str) -> LineResult:
    """A line that did not come to an answer: those that are `UNRUN` count as neither completed nor failed."""
    error = {"code": code, "message": ERROR_TEXTS[code]}
    outcome: Any = "unrun" if code in UNRUN else "failed"
    why = LineError(**error) if outcome == "failed" else None
    return LineResult(index=line.index, outcome=outcome, data=_output(line, None, error), error=why)


def _output(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    return written({"id": passing_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": error})
