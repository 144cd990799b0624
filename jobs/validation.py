"""Reading a batch's input once, in bounded memory: every error with its line, and the cut into shards.

Custom ids are compared by 64-bit hashes first; only where two hashes meet is the file read again for the names. Where
lines are better run in another order, it is read again for where they lie.
What a body asks for beyond the batch's own rules is judged when the line runs, and fails that line alone.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .arranging import Beginnings, Layout
from .cutting import MAX_SHARD_BYTES, cut
from .errors import BlobMissing, UserError
from .estimates import DEFAULT_ANSWER_TOKENS, line_tokens
from .generation import NEUTRAL
from .json_text import read_strictly
from .line_options import line_options
from .lines import split_lines
from .records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Batch, BatchError, Shard
from .settings import Settings
from .twins import MOST_LINES, Spellings, Twins, spelling_of

MAX_ERRORS = 1000
NUM_HEAPS = 64
# So many lines must lie in another shard than a twin of theirs for a copy of the file to cost less than their runs.
MIN_TWINS = 1 / 1000
MAX_DEPTH = 200  # Of nested arrays and objects: far below what Python's parser takes, wherever it is called from.
MAX_MESSAGE = 500
KINDS = {CHAT: "Chat Completions", COMPLETIONS: "Completions", EMBEDDINGS: "Embeddings", RESPONSES: "Responses"}
REQUIRED = ("custom_id", "method", "url", "body")
DUPLICATE = (
    "The custom_id for this request is a duplicate of another request. "
    "The custom_id parameter must be unique for each request in a batch."
)

Reader = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What came of reading a batch's input; with errors there is nothing to run.

    `estimated_tokens` is what it will use as far as is known, `asked_tokens` what it may use at most.
    """

    errors: tuple[BatchError, ...]
    shards: tuple[Shard, ...]
    total: int
    model: str
    asked_tokens: int = 0
    arrangement: Arrangement | None = None
    estimated_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A better order to run the lines in than that of the file, with its `layout`, and the shards of a copy in it."""

    layout: Layout
    order: Sequence[int]
    shards: tuple[Shard, ...]


class _Hashes:
    """Eight bytes for each custom_id, in small heaps, so that they can be sorted one after another."""

    def __init__(self) -> None:
        self._heaps = [array("Q") for _ in range(NUM_HEAPS)]

    def __len__(self) -> int:
        return sum(map(len, self._heaps))

    def add(self, custom_id: str) -> None:
        value = _hash(custom_id)
        self._heaps[value % NUM_HEAPS].append(value)

    def repeated(self) -> set[int]:
        """Those that came more than once."""
        return {one for heap in self._heaps for one, two in pairwise(sorted(heap)) if one == two}


@dataclass(slots=True)
class _Findings:
    """What the pass over the file gathers. Of more errors than can be listed, the later ones are only counted."""

    errors: list[BatchError] = field(default_factory=list)
    num_unlisted: int = 0
    shards: list[Shard] = field(default_factory=list)
    hashes: _Hashes = field(default_factory=_Hashes)
    beginnings: Beginnings = field(default_factory=Beginnings)
    spellings: Spellings = field(default_factory=Spellings)
    model: str | None = None
    asked_tokens: float = 0.0
    tokens: float = 0.0

    def add(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        if line is not None and len(self.errors) >= MAX_ERRORS:
            self.num_unlisted += 1
            return
        # What it quotes may be of any size, and half of a surrogate pair that no encoding can carry.
        message = message[:MAX_MESSAGE].encode(errors="backslashreplace").decode()
        self.errors.append(BatchError(code=code, message=message, line=line, param=param))

    def listed(self) -> tuple[BatchError, ...]:
        """The errors in the order of their lines, and how many are left out."""
        ordered = sorted(self.errors, key=lambda error: error.line or 0)
        more = self.num_unlisted + len(ordered[MAX_ERRORS:])
        note = [BatchError(code="too_many_errors", message=f"{more} more errors are not listed.")] if more else []
        return (*ordered[:MAX_ERRORS], *note)


def validate(
    batch: Batch,
    read: Reader,
    *,
    models: set[str],
    settings: Settings,
    answer_tokens: Mapping[str, float] | None = None,
    samplings: Mapping[str, Mapping[str, float]] | None = None,
) -> Validated:
    """Check all lines of `batch`; `read` opens its input, `models` are known here.

    `answer_tokens` is how long a model's answers are, as far as is known: for the estimate of the batch's tokens.
    `samplings` says how a model draws them where a line does not, as far as is known: for the lines that ask the same.
    """
    found, total = _Findings(), 0
    try:
        total = _scan(batch, read(), models, settings, found, answer_tokens or {}, samplings or {})
    except BlobMissing:
        found.add(None, "invalid_request", _no_file(batch), "file_id")
    except UserError as error:
        found.add(None, error.code or "invalid_request", error.message, error.param)
    for number, line in enumerate(_duplicates(read, found.hashes, settings)):
        if number < MAX_ERRORS:  # They may stand before what the scan has found.
            found.errors.append(BatchError(code="duplicate_custom_id", message=DUPLICATE, line=line, param="custom_id"))
        else:
            found.num_unlisted += 1
    if not total and not found.errors:
        found.add(None, "empty_file", "The input file holds no requests.")
    return Validated(
        errors=found.listed(),
        shards=() if found.errors else tuple(found.shards),
        total=total,
        model=found.model or "",
        asked_tokens=math.ceil(found.asked_tokens),
        arrangement=None if found.errors else _arrangement(read, found, total, settings),
        estimated_tokens=int(found.tokens),
    )


def _no_file(batch: Batch) -> str:
    return f"Cannot find file {batch.input_file_id}, or organization {batch.tenant} does not have access to it."


def _arrangement(read: Reader, found: _Findings, total: int, settings: Settings) -> Arrangement | None:
    """For prompts that begin alike and for twins, where the file's own order scatters them."""
    if total > MOST_LINES:
        return None
    twins = Twins(found.spellings.groups(), total)
    by_prompts = found.beginnings.order()
    if by_prompts is None and twins.num_apart(found.shards) < max(1, MIN_TWINS * total):
        return None
    order = twins.together(range(total) if by_prompts is None else by_prompts)
    layout = Layout(read(), longest=settings.max_line_bytes)
    shards = cut(((layout.line_size(line), twins.is_later(line)) for line in order), settings.shard_lines)
    return Arrangement(layout=layout, order=order, shards=shards)


def _scan(
    batch: Batch,
    chunks: Iterable[bytes],
    models: set[str],
    settings: Settings,
    found: _Findings,
    answer_tokens: Mapping[str, float],
    samplings: Mapping[str, Mapping[str, float]],
) -> int:
    total = first = start = 0
    for number, (offset, raw) in enumerate(split_lines(chunks, longest=settings.max_line_bytes), start=1):
        if not raw.strip():
            continue
        if total == settings.max_batch_lines:
            raise UserError(f"The batch holds more than {total} requests (PRESSRUN_MAX_BATCH_LINES).")
        if total - first == settings.shard_lines or (total > first and offset - start >= MAX_SHARD_BYTES):
            found.shards.append(_shard(len(found.shards), first, total, start, offset))
            first = total
        if total == first:
            start = offset
        body = _check_line(batch, raw, number, models, settings, found)
        found.beginnings.add(body)
        found.spellings.add(total, spelling_of(batch.endpoint, body, samplings.get(found.model or "", NEUTRAL)))
        answer = answer_tokens.get(found.model or "", DEFAULT_ANSWER_TOKENS)
        tokens = line_tokens(batch.endpoint, body, answer)
        found.asked_tokens += tokens.asked
        found.tokens += tokens.expected
        total += 1
        end = offset + len(raw)
    if total > first:
        found.shards.append(_shard(len(found.shards), first, total, start, end))
    return total


def _shard(index: int, first: int, stop: int, start: int, end: int) -> Shard:
    return Shard(index=index, first_line=first, num_lines=stop - first, offset=start, size=end - start)


def _check_line(
    batch: Batch, raw: bytes, number: int, models: set[str], settings: Settings, found: _Findings
) -> dict[str, Any]:
    """Note what is wrong with a line; return its body, as far as there is one."""
    if len(raw) > settings.max_line_bytes:
        limit = settings.max_line_bytes
        found.add(number, "invalid_request", f"The line is longer than {limit} bytes (PRESSRUN_MAX_LINE_BYTES).")
        return {}
    line = parse_object(raw)
    if line is None:
        found.add(number, "invalid_json_line", "This line is not parseable as valid JSON.")
        return {}
    for name in REQUIRED:
        if line.get(name) is None:
            found.add(number, "missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    _check_envelope(batch, line, number, found)
    body = line.get("body")
    if not isinstance(body, dict):
        return {}
    _check_body(batch, body, number, models, found)
    return body


def _check_envelope(batch: Batch, line: dict[str, Any], number: int, found: _Findings) -> None:
    custom_id, method, url = line.get("custom_id"), line.get("method"), line.get("url")
    if isinstance(custom_id, str):
        found.hashes.add(custom_id)
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
    try:
        line_options(line.get("pressrun"))
    except UserError as error:
        found.add(number, error.code or "invalid_request", error.message, error.param)


def _check_body(batch: Batch, body: dict[str, Any], number: int, models: set[str], found: _Findings) -> None:
    if body.get("stream"):
        kind = KINDS[batch.endpoint]
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
    if batch.endpoint == EMBEDDINGS and body.get("input") is None:
        found.add(number, "invalid_request", "Input parameter is required.", "body.input")


def _duplicates(read: Reader, hashes: _Hashes, settings: Settings) -> Iterator[int]:
    """The second and later lines of every custom_id that comes more than once, among the lines that were scanned."""
    suspects = hashes.repeated()
    if not suspects:
        return
    seen: set[str] = set()
    left = len(hashes)
    for number, (_, raw) in enumerate(split_lines(read(), longest=settings.max_line_bytes), start=1):
        custom_id = (parse_object(raw) or {}).get("custom_id") if len(raw) <= settings.max_line_bytes else None
        if not isinstance(custom_id, str):
            continue
        if custom_id in seen:
            yield number
        if _hash(custom_id) in suspects:
            seen.add(custom_id)
        left -= 1
        if not left:
            return  # What comes after may be what the scan stopped at.


def _hash(custom_id: str) -> int:
    digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`, or None: strict JSON in UTF-8, not nested too deep, nothing else."""
    try:
        value = read_strictly(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or (raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(value)):
        return None
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether more than `MAX_DEPTH` arrays and objects lie in one another."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (child for one in level for child in (one.values() if isinstance(one, dict) else one))
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return False
    return True
