"""Reading a batch's input once, in bounded memory: every error with its line, and the cut into shards.

Custom ids are compared by 64-bit hashes first; only where two hashes meet is the file read again for the names.
What a body asks for beyond the batch's own rules is judged when the line runs, and fails that line alone.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from .errors import BlobMissing, UserError
from .lines import split_lines
from .records import CHAT, Batch, BatchError, Shard
from .settings import Settings

MAX_ERRORS = 1000
MAX_SHARD_BYTES = 4 * 2**20
BEAT_LINES = 1000
REQUIRED = ("custom_id", "method", "url", "body")
DUPLICATE = (
    "The custom_id for this request is a duplicate of another request. "
    "The custom_id parameter must be unique for each request in a batch."
)

Reader = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What came of reading a batch's input. With errors there is nothing to run."""

    errors: tuple[BatchError, ...]
    shards: tuple[Shard, ...]
    total: int
    model: str


@dataclass(slots=True)
class _Findings:
    """What the pass over the file gathers."""

    errors: list[BatchError] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    model: str | None = None

    def add(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(BatchError(code=code, message=message, line=line, param=param))


def validate(
    batch: Batch,
    read: Reader,
    *,
    models: set[str],
    settings: Settings,
    beat: Callable[[], None] = lambda: None,
) -> Validated:
    """Check all lines of `batch`; `read` opens its input, `models` are served now, `beat` is called on the way."""
    found, total = _Findings(), 0
    try:
        total = _scan(batch, read(), models, settings, found, beat)
    except BlobMissing:
        found.add(None, "invalid_request", f"Cannot find file {batch.input_file_id}.", "file_id")
    except UserError as error:
        found.add(None, error.code or "invalid_request", error.message, error.param)
    found.errors += _duplicates(read, found.hashes, settings)
    if not total and not found.errors:
        found.add(None, "empty_file", "The input file holds no requests.")
    found.errors.sort(key=lambda error: error.line or 0)
    if len(found.errors) > MAX_ERRORS:
        more = len(found.errors) - MAX_ERRORS
        found.errors[MAX_ERRORS:] = [BatchError(code="too_many_errors", message=f"{more} more errors are not listed.")]
    return Validated(
        errors=tuple(found.errors),
        shards=() if found.errors else tuple(found.shards),
        total=total,
        model=found.model or "",
    )


def _scan(
    batch: Batch,
    chunks: Iterable[bytes],
    models: set[str],
    settings: Settings,
    found: _Findings,
    beat: Callable[[], None],
) -> int:
    total = first = start = 0
    for number, (offset, raw) in enumerate(split_lines(chunks, longest=settings.max_line_bytes), start=1):
        if number % BEAT_LINES == 0:
            beat()
        if not raw.strip():
            continue
        if total == settings.max_batch_lines:
            raise UserError(f"The batch holds more than {total} requests (PRESSRUN_MAX_BATCH_LINES).")
        if total - first == settings.shard_lines or (total > first and offset - start >= MAX_SHARD_BYTES):
            found.shards.append(_shard(found, first, total, start, offset))
            first = total
        if total == first:
            start = offset
        _check_line(batch, raw, number, models, settings, found)
        total += 1
        end = offset + len(raw)
    if total > first:
        found.shards.append(_shard(found, first, total, start, end))
    return total


def _shard(found: _Findings, first: int, stop: int, start: int, end: int) -> Shard:
    return Shard(index=len(found.shards), first_line=first, num_lines=stop - first, offset=start, size=end - start)


def _check_line(batch: Batch, raw: bytes, number: int, models: set[str], settings: Settings, found: _Findings) -> None:
    if len(raw) > settings.max_line_bytes:
        limit = settings.max_line_bytes
        return found.add(number, "invalid_request", f"The line is longer than {limit} bytes (PRESSRUN_MAX_LINE_BYTES).")
    line = parse_object(raw)
    if line is None:
        return found.add(number, "invalid_json_line", "This line is not parseable as valid JSON.")
    for name in REQUIRED:
        if line.get(name) is None:
            found.add(number, "missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    _check_envelope(batch, line, number, found)
    body = line.get("body")
    if isinstance(body, dict):
        _check_body(batch, body, number, models, found)
    return None


def _check_envelope(batch: Batch, line: dict[str, Any], number: int, found: _Findings) -> None:
    custom_id, method, url = line.get("custom_id"), line.get("method"), line.get("url")
    if isinstance(custom_id, str):
        found.hashes.append(_hash(custom_id))
    elif custom_id is not None:
        found.add(number, "invalid_request", "custom_id must be a string.", "custom_id")
    if method is not None and method != "POST":
        found.add(number, "invalid_request", "The method of a request must be POST.", "method")
    if url is not None and url != batch.endpoint:
        found.add(
            number,
            "invalid_url",
            "The URL provided for this request does not match the batch endpoint.",
            "url",
        )


def _check_body(batch: Batch, body: dict[str, Any], number: int, models: set[str], found: _Findings) -> None:
    if body.get("stream"):
        kind = "Chat Completions" if batch.endpoint == CHAT else "Completions"
        message = f"{kind}: Streaming is not supported in the Batch API."
        found.add(number, "streaming_unsupported", message, "body.stream")
    model = body.get("model")
    if model is None:
        found.add(number, "invalid_request", "Model parameter is required.", "body.model")
    elif not isinstance(model, str) or model not in models:
        message = f"The provided model '{model}' is not supported by the Batch API."
        found.add(number, "model_not_found", message, "body.model")
    elif model != (found.model or model):
        message = f"The model '{model}' for this request does not match the rest of the batch."
        found.add(number, "mismatched_model", message, "body.model")
    else:
        found.model = model
    if batch.endpoint == CHAT and body.get("messages") is None:
        found.add(number, "invalid_request", "Messages parameter is required.", "body.messages")


def _duplicates(read: Reader, hashes: array[int], settings: Settings) -> Iterator[BatchError]:
    """The second and later lines of every custom_id that comes more than once."""
    ordered = sorted(hashes)
    suspects = {one for one, two in pairwise(ordered) if one == two}
    seen: set[str] = set()
    if not suspects:
        return
    for number, (_, raw) in enumerate(split_lines(read(), longest=settings.max_line_bytes), start=1):
        custom_id = (parse_object(raw) or {}).get("custom_id")
        if not isinstance(custom_id, str) or _hash(custom_id) not in suspects:
            continue
        if custom_id in seen:
            yield BatchError(code="duplicate_custom_id", message=DUPLICATE, line=number, param="custom_id")
        seen.add(custom_id)


def _hash(custom_id: str) -> int:
    digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`, or None: strict JSON in UTF-8, nothing else."""
    try:
        value = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
