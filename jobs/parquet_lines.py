"""A process that prints a Parquet table of requests as the lines of a batch file.

One row is one request. A table has `custom_id`, and either `body` (JSON or a struct) with `url` and, if it likes,
`method`; or the fields of the body as columns, among them `messages` (a chat completion) or `prompt` (a completion). A
null is a field that is not there. Reads a few rows at a time, and under a limit of memory.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any, NoReturn

from .parquet import REFUSED
from .records import CHAT, COMPLETIONS
from .validation import parse_object

MAX_MEMORY = 2 * 2**30  # Of addresses, beside what pyarrow has taken by being there.
BATCH_ROWS = 64
ENVELOPE = ("custom_id", "method", "url", "body")
KINDS = {"messages": CHAT, "prompt": COMPLETIONS}


def main() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY,) * 2)
    try:
        table = pq.ParquetFile(sys.argv[1], buffer_size=2**20, pre_buffer=False)
        url = _url_of(table.schema_arrow.names)
        row = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for fields in batch.to_pylist():
                row += 1
                sys.stdout.buffer.write(_line(fields, url, row))
    except MemoryError:
        sys.exit(1)  # Before what pyarrow makes of it.
    except pa.ArrowException as error:
        _refuse(f"it is not whole, or not Parquet ({error})")


def _url_of(columns: list[str]) -> str | None:
    """What the rows ask for, where their columns say it; None where each has its `url`."""
    if "custom_id" not in columns:
        _refuse("it lacks the column 'custom_id'")
    if "body" in columns:
        if "url" not in columns:
            _refuse("it has a column 'body' and lacks 'url'")
        for name in columns:
            if name not in ENVELOPE:
                _refuse(f"beside 'body' it has a column {name!r}, which is none of {', '.join(ENVELOPE)}")
        return None
    kinds = [url for name, url in KINDS.items() if name in columns]
    if len(kinds) != 1:
        _refuse("it needs one of the columns 'body', 'messages' and 'prompt'")
    for name in ("method", "url"):
        if name in columns:
            _refuse(f"it has a column {name!r}, which belongs to a column 'body'")
    return kinds[0]


def _line(fields: dict[str, Any], url: str | None, row: int) -> bytes:
    fields = _without_nulls(fields)
    if url is None:
        line = {"method": "POST"} | fields
        if isinstance(line.get("body"), str):
            body = parse_object(line["body"].encode())
            if body is None:
                _refuse(f"the 'body' of row {row} is not a JSON object")
            line["body"] = body
    else:
        custom_id = {name: fields.pop(name) for name in ("custom_id",) if name in fields}
        line = custom_id | {"method": "POST", "url": url, "body": fields}
    try:
        return json.dumps(line, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        _refuse(f"row {row} holds what JSON cannot say ({error})")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(reason)
    sys.stderr.flush()
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
