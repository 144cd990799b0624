"""Parquet in and out: a table of requests as lines, and result lines as a table.

A table is read in a process of its own (`parquet_lines.py`) under a limit of memory: what a stranger sends may declare
any size, and may break a reader that is not written in Python. Needs pyarrow, and says so where it is not there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from threading import BoundedSemaphore
from typing import IO, Any

from .errors import UserError
from .lines import split_lines

CHUNK = 2**20
REFUSED = 3  # The exit code of the reader for a table that it understands and does not take.
READERS = BoundedSemaphore(2)  # So many at a time: each may take what memory it is allowed.
BUSY_S = 5  # Nor may those that wait hold all threads of the API.
ENVIRON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # What a reader of strangers' files is told: no secrets.
GROUP_LINES, GROUP_BYTES = 10_000, 8 * 2**20
COLUMNS = ("id", "custom_id", "status_code", "request_id", "body", "error")


def lines_of_table(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A table of requests as the bytes of a batch file. UserError that names the row and column it fails at."""
    need_pyarrow("file")
    with tempfile.NamedTemporaryFile() as copy:
        for chunk in chunks:
            copy.write(chunk)
        copy.flush()
        if not READERS.acquire(timeout=BUSY_S):
            message = "The server reads as many Parquet files as it can. Try again shortly."
            raise UserError(message, param="file", code="server_busy", status=503)
        try:
            yield from _read(copy.name)
        finally:
            READERS.release()


def table_of_results(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Result lines as a table: `COLUMNS`, where `body` and `error` are JSON."""
    need_pyarrow("format")  # Now, and not when the first chunk is asked for: an answer has begun by then.
    return _written(chunks)


def _read(path: str) -> Iterator[bytes]:
    command = [sys.executable, "-P", "-m", f"{__package__}.parquet_lines", path]
    environ = {name: os.environ[name] for name in ENVIRON if name in os.environ}
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environ) as reader:
            assert reader.stdout is not None
            try:
                while chunk := reader.stdout.read(CHUNK):
                    yield chunk
            except BaseException:
                reader.kill()  # Nobody wants the rest.
                raise
        if reader.returncode:
            raise _refusal(reader.returncode, errors)


def _written(chunks: Iterable[bytes]) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int32() if name == "status_code" else pa.string()) for name in COLUMNS])
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for rows in _groups(chunks):
            writer.write_table(pa.Table.from_pylist(rows, schema))
            yield sink.taken()
    yield sink.taken()


def _refusal(code: int, errors: IO[bytes]) -> UserError:
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip()
    if code != REFUSED:
        # What a library prints when it dies is for no client; what kind of end it was, is.
        said = "reading it takes too much memory, or breaks the reader"
    return UserError(f"The file cannot be read as a table of requests: {said}.", param="file", code="invalid_table")


def _groups(chunks: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for _, raw in split_lines(chunks, longest=sys.maxsize):
        rows.append(_row(json.loads(raw)))
        size += len(raw)
        if len(rows) == GROUP_LINES or size >= GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _row(line: dict[str, Any]) -> dict[str, Any]:
    response = line["response"] or {}
    return {
        "id": line["id"],
        "custom_id": line["custom_id"],
        "status_code": response.get("status_code"),
        "request_id": response.get("request_id"),
        "body": json.dumps(response["body"]) if response else None,
        "error": json.dumps(line["error"]) if line["error"] else None,
    }


class _Sink:
    """A file that keeps what is written until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """There is nothing behind."""

    def close(self) -> None:
        """What is there can still be taken."""

    def taken(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


def need_pyarrow(param: str) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        message = "This server does not know Parquet: it needs pip install 'pressrun[parquet]'."
        raise UserError(message, param=param, code="unsupported_format")
