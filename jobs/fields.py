"""How files and batches are written down as the fields of a hash, and read again. Knows nothing of where they lie.

What a version before this one has not written is 0, false or none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .records import Batch, BatchError, Counts, ErrorCount, File, Usage

_PLAIN = (
    "id", "kind", "endpoint", "input_file_id", "completion_window", "status", "model", "reserved_output_id",
    "reserved_error_id", "output_file_id", "error_file_id", "closing", "closed_before", "tenant", "event_id",
    "input_url", "input_etag", "output_prefix", "delivery_error", "trace", "segment_writer",
    "results_name",
)  # fmt: skip
_CLEARED = ("output_file_id", "error_file_id", "closing", "closed_before", "delivery_error")  # Empty is none.
_NUMBERS = (
    "created_at", "expires_at", "num_shards", "priority", "estimated_tokens", "earlier_tokens", "generation",
)  # fmt: skip
_FLAGS = ("arranged", "strict", "paused")


def as_text(raw: Any) -> str:
    """What Redis has answered, be it bytes or a number."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def file_fields(file: File) -> dict[Any, Any]:
    """What is written down of a file."""
    return {name: str(value) for name, value in asdict(file).items() if value is not None}


def parse_file(raw: Mapping[Any, Any]) -> File:
    """A file from its fields."""
    fields: dict[str, Any] = {as_text(key): as_text(value) for key, value in raw.items()}
    for name in ("bytes", "created_at", "expires_at"):
        if name in fields:
            fields[name] = int(fields[name])
    return File(**fields)


def batch_fields(batch: Batch) -> dict[Any, Any]:
    """What is written down of a batch."""
    fields: dict[Any, Any] = {name: getattr(batch, name) for name in _PLAIN if getattr(batch, name) is not None}
    fields |= {name: int(getattr(batch, name)) for name in (*_NUMBERS, *_FLAGS)}
    fields |= asdict(batch.counts) | asdict(batch.usage) | batch.times
    if batch.metadata is not None:
        fields["metadata"] = json.dumps(batch.metadata)
    if batch.output_ttl_s is not None:
        fields["output_ttl_s"] = batch.output_ttl_s
    return fields


def parse_batch(raw: Mapping[Any, Any]) -> Batch:
    """A batch from its fields."""
    fields: dict[str, Any] = {as_text(key): as_text(value) for key, value in raw.items()}
    times = {name: int(value) for name, value in fields.items() if name.endswith("_at") and name != "expires_at"}
    times.pop("created_at")
    numbers: dict[str, Any] = {name: int(fields.get(name, 0)) for name in _NUMBERS}
    flags: dict[str, Any] = {name: fields.get(name) == "1" for name in _FLAGS}
    return Batch(
        **{name: fields[name] for name in _PLAIN if name in fields and (fields[name] or name not in _CLEARED)},
        **numbers,
        **flags,
        output_ttl_s=int(fields["output_ttl_s"]) if "output_ttl_s" in fields else None,
        common_errors=_common_errors(fields),
        metadata=json.loads(fields["metadata"]) if "metadata" in fields else None,
        errors=tuple(BatchError(**error) for error in json.loads(fields.get("errors", "[]"))),
        counts=Counts(**{name: int(fields[name]) for name in Counts.__dataclass_fields__}),
        usage=Usage(**{name: int(fields[name]) for name in Usage.__dataclass_fields__}),
        times=times,
    )


def _common_errors(fields: Mapping[str, str]) -> tuple[ErrorCount, ...]:
    """What `commit.lua` has counted, commonest first: `error:{code} {param}:` and, as `first-error:…`, the message."""
    counted = []
    for name, count in fields.items():
        if name.startswith("error:"):
            code, _, param = name[len("error:") : -1].partition(" ")
            message = fields.get(f"first-{name}", "")
            counted.append(ErrorCount(code=code, param=param or None, message=message, count=int(count)))
    return tuple(sorted(counted, key=lambda error: (-error.count, error.code, error.param or "")))
