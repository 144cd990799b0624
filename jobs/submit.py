"""What clients may do: the rules of making and ending files, batches and jobs, in OpenAI's terms.

Raises UserError and its kind that say what to change. Objects belong to a tenant, and another tenant's are not found,
in the words in which unknown ones are not. Whoever gives an object's id may create it again: it is there once. Knows
nothing of HTTP.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from typing import Any

from . import ids
from .backend import Backend
from .errors import BlobMissing, NotFound, UserError
from .estimates import line_tokens
from .interactive import enqueue_jobs
from .invalid import invalid_type, whole_text
from .packing import unpacked
from .places import SCHEME, check_prefix, find_input
from .records import DEFAULT_TENANT, ENDED, ENDPOINTS, Batch, Counts, File, Shard
from .requests import parse_body
from .settings import Settings
from .streams import at_most, checked_start, too_large
from .traces import trace_of_creation

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
JOB_WINDOW = "24h"
MIN_WINDOW_S, MAX_WINDOW_S = 60, 30 * 86400
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 86400
LONGEST_UPLOAD_S = 86400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)


def create_file(
    backend: Backend,
    *,
    filename: str,
    purpose: str,
    chunks: Iterable[bytes],
    expires_after_s: int | None = None,
    tenant: str = DEFAULT_TENANT,
    file_id: str | None = None,
) -> File:
    """Store an upload, durable when this returns.

    A batch file must hold something and begin with a JSON object, once it is unpacked.
    """
    settings = backend.settings
    check_known(purpose)
    check_expiry(expires_after_s, "expires_after.seconds")
    limit = settings.max_file_bytes
    chunks = at_most(chunks, limit, too_large(limit, "PRESSRUN_MAX_FILE_BYTES"), "file")
    if purpose == "batch":
        filename, chunks = plain_lines(settings, filename, chunks)
    now, file_id = int(time.time()), file_id or ids.file_id()
    ttl = file_ttl_s(settings, purpose, expires_after_s)
    backend.store.begin_upload(file_id)
    try:
        size = backend.blobs.put(f"files/{file_id}", chunks)
        check_filled(size)
        file = File(
            id=file_id,
            bytes=size,
            created_at=now,
            filename=filename,
            purpose=purpose,
            expires_at=ttl and now + ttl,
            tenant=tenant,
        )
        backend.store.add_file(file, limited=True)
    except UserError:
        backend.blobs.delete(f"files/{file_id}")
        backend.store.forget_file(file_id)
        raise
    backend.store.make_durable()
    return file


def plain_lines(settings: Settings, filename: str, chunks: Iterable[bytes]) -> tuple[str, Iterable[bytes]]:
    """A batch file's name and bytes as it is kept, whatever it was sent as. UserError for what none may be."""
    name, lines = unpacked(filename, chunks)
    if name != filename:
        limit = settings.max_batch_bytes
        lines = at_most(lines, limit, too_large(limit, "PRESSRUN_MAX_BATCH_BYTES"), "file")
    return name, checked_start(lines, settings.max_line_bytes)


def check_filled(size: int) -> None:
    """A file holds something."""
    if not size:
        raise UserError("The file is empty.", param="file", code="empty_file")


def check_known(purpose: str) -> None:
    """One of `PURPOSES`."""
    if purpose not in PURPOSES:
        raise _bad_value("purpose", purpose, PURPOSES)


def file_ttl_s(settings: Settings, purpose: str, expires_after_s: int | None) -> int | None:
    """How long a file is kept: as asked, or as long as its purpose has it; None for ever."""
    return expires_after_s or (settings.file_ttl_s if purpose == "batch" else None)


def find_file(backend: Backend, file_id: str, tenant: str) -> File:
    """The tenant's file with this id."""
    file = backend.store.file(file_id)
    if file.tenant != tenant:
        raise NotFound(f"No such File object: {file_id}", param="id")
    return file


def delete_file(backend: Backend, file_id: str, tenant: str = DEFAULT_TENANT) -> None:
    """Make a file unknown to clients, now. Its bytes stay as long as a batch needs them that is made of it."""
    find_file(backend, file_id, tenant)
    backend.store.retire_file(file_id)
    backend.store.make_durable()  # A crash of Redis must not bring back a file that has no bytes.
    sweep_files(backend, [file_id])


def sweep_files(backend: Backend, expired: Iterable[str]) -> None:
    """Delete the bytes of expired files, but of those that a batch still needs. May be done twice."""
    in_use = backend.store.inputs_in_use()
    for file_id in expired:
        if file_id not in in_use:
            file = backend.store.known_file(file_id)
            for key in (file.blob, file.index_blob) if file is not None else ():
                backend.blobs.delete(key)
            backend.store.forget_file(file_id)


def sweep_broken_uploads(backend: Backend) -> None:
    """Delete the bytes of uploads that broke off, and that nobody can be sending any more. May be done twice."""
    for file_id in backend.store.broken_uploads(LONGEST_UPLOAD_S):
        backend.blobs.delete(f"files/{file_id}")
        backend.store.forget_file(file_id)
    for folder in ("files", "arranged", "segments", "results", "retries"):
        backend.blobs.tidy(folder, LONGEST_UPLOAD_S)


def create_batch(
    backend: Backend,
    *,
    input_file_id: str,
    endpoint: str,
    completion_window: str,
    metadata: object = None,
    output_ttl_s: int | None = None,
    priority: int = 0,
    strict: bool = False,
    output_prefix: str | None = None,
    tenant: str = DEFAULT_TENANT,
    batch_id: str | None = None,
) -> Batch:
    """A new batch, durable when this returns. What is wrong with its lines shows in its status, not here, and so does
    a window that is too short for a `strict` one.

    `input_file_id` may be the s3:// URL of an object, which becomes a file when the batch is validated.
    """
    if endpoint not in ENDPOINTS:
        raise _bad_value("endpoint", endpoint, ENDPOINTS)
    window_s = parse_window(completion_window)
    tags = check_metadata(metadata)
    check_expiry(output_ttl_s, "output_expires_after.seconds")
    input_url = input_file_id if input_file_id.startswith(SCHEME) else None
    etag = None if input_url is None else find_input(backend, input_url)
    file_id = _batch_input(backend, input_file_id, tenant).id if input_url is None else ids.file_id()
    if output_prefix is not None:
        check_prefix(backend, output_prefix)
    now = int(time.time())
    batch = Batch(
        id=batch_id or ids.batch_id(),
        kind="batch",
        endpoint=endpoint,
        input_file_id=file_id,
        input_url=input_url,
        input_etag=etag,
        output_prefix=output_prefix,
        completion_window=completion_window,
        created_at=now,
        expires_at=now + window_s,
        metadata=tags,
        priority=priority,
        strict=strict,
        reserved_output_id=ids.file_id(),
        reserved_error_id=ids.file_id(),
        output_ttl_s=output_ttl_s,
        tenant=tenant,
        trace=trace_of_creation(),
    )
    backend.quotas.open_batch(tenant, batch.id)
    is_new = backend.store.create_batch(batch)
    return batch if is_new else backend.store.batch(batch.id)


def create_job(
    backend: Backend,
    *,
    url: str,
    body: object,
    tenant: str = DEFAULT_TENANT,
    priority: int = 0,
    job_id: str | None = None,
) -> Batch:
    """Queue one request ahead of all batches. Its body is checked now, so that the caller hears at once.

    It is as durable as all that was written to Redis; who promises more waits for the disk.
    """
    if url not in ENDPOINTS:
        raise _bad_value("url", url, ENDPOINTS)
    request = parse_body(url, body)
    assert isinstance(body, dict)
    if request.stream:
        raise UserError("A job is polled, not streamed; remove 'stream'.", param="stream", code="streaming_unsupported")
    if request.model not in backend.store.known_models():
        message = f"The model '{request.model}' does not exist or no worker has served it lately."
        raise UserError(message, param="model", code="model_not_found", status=404)
    job_id, now = job_id or ids.job_id(), int(time.time())
    line = json.dumps({"custom_id": job_id, "method": "POST", "url": url, "body": body}).encode()
    limit = backend.settings.max_line_bytes
    if len(line) > limit:
        message = f"The request is a line of {len(line)} bytes; at most {limit} are taken (PRESSRUN_MAX_LINE_BYTES)."
        raise UserError(message, param="body", code="request_too_large", status=413)
    job = Batch(
        id=job_id,
        kind="job",
        endpoint=url,
        input_file_id="",
        completion_window=JOB_WINDOW,
        created_at=now,
        expires_at=now + parse_window(JOB_WINDOW),
        counts=Counts(total=1),
        tenant=tenant,
        trace=trace_of_creation(),
        priority=priority,
    )
    backend.quotas.open_job(tenant, job_id, request.model, math.ceil(line_tokens(url, body).asked))
    backend.job_blobs.put(job.input_blob, [line])
    if not backend.store.create_batch(job):
        return backend.store.batch(job_id)  # What its creator left undone, housekeeping does.
    backend.job_blobs.keep(job.input_blob)  # Until it ends, however long its workers are away.
    shard = Shard(index=0, first_line=0, num_lines=1, offset=0, size=len(line))
    backend.shards.begin(job_id, [shard], model=request.model, total=1)
    if backend.shards.feed([job_id], 1) != [[]]:
        enqueue_jobs(backend.store, request.model, [(job_id, priority)])
    return backend.store.batch(job_id)


def find_batch(backend: Backend, batch_id: str, tenant: str) -> Batch:
    """The tenant's batch with this id; a native job's id is not one."""
    batch = backend.store.batch(batch_id)
    if batch.kind != "batch" or batch.tenant != tenant:
        raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
    return batch


def find_job(backend: Backend, job_id: str, tenant: str) -> Batch:
    """The tenant's job with this id; a batch's id is not one."""
    try:
        job = backend.store.batch(job_id)
    except NotFound:
        job = None
    if job is None or job.kind != "job" or job.tenant != tenant:
        raise NotFound(f"No job found with id '{job_id}'.", param="id")
    return job


def job_result(backend: Backend, job: Batch) -> dict[str, Any] | None:
    """A finished job's line of output: `response` and `error` as in a batch's files. None while it is not finished."""
    if job.status not in ENDED:
        return None
    for part in ("output", "error"):
        try:
            raw = b"".join(backend.job_blobs.open(job.segment_blob(0, part, job.segment_writer)))
        except BlobMissing:
            continue
        result: dict[str, Any] = json.loads(raw)
        return result
    return None


def parse_window(text: object) -> int:
    """Seconds of a Go-style duration such as "24h" or "1h30m", from 1m to 30d."""
    if not isinstance(text, str):
        raise invalid_type("completion_window", "a string", text)
    seconds = duration_s(text)
    if seconds is not None and MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        return int(seconds)
    message = f"Invalid value: '{text}'. Expected a duration from 1m to 30d, such as '24h' or '1h30m'."
    raise UserError(message, param="completion_window", code="invalid_value")


def check_expiry(seconds: int | None, param: str) -> None:
    """How long a file may be kept: an hour to 30 days; None: as long as its kind is."""
    if seconds is not None and not MIN_EXPIRY_S <= seconds <= MAX_EXPIRY_S:
        message = f"Invalid value for '{param}': expected {MIN_EXPIRY_S} to {MAX_EXPIRY_S}."
        raise UserError(message, param=param, code="invalid_value")


def duration_s(text: str) -> float | None:
    """Seconds of a Go-style duration; None for what is none."""
    if not _WINDOW.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))


def check_metadata(metadata: object) -> dict[str, str] | None:
    """At most 16 pairs of strings: keys of at most 64 characters, values of at most 512."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise invalid_type("metadata", "an object", metadata)
    if len(metadata) > 16:
        message = f"Invalid 'metadata': at most 16 properties are allowed, not {len(metadata)}."
        raise UserError(message, param="metadata", code="object_above_max_properties")
    for key, value in metadata.items():
        param = f"metadata.{key}"
        if not isinstance(value, str):
            raise invalid_type(param, "a string", value)
        try:
            whole_text(key + value)
        except ValueError as error:
            raise UserError(f"Invalid 'metadata': {error}.", param="metadata", code="invalid_value") from error
        if len(key) > 64:
            raise UserError(
                "Invalid 'metadata': a key is longer than 64 characters.", param=param, code="invalid_value"
            )
        if len(value) > 512:
            message = f"Invalid '{param}': string too long. Expected at most 512 characters, but got {len(value)}."
            raise UserError(message, param=param, code="string_above_max_length")
    return dict(metadata)


def _batch_input(backend: Backend, file_id: str, tenant: str) -> File:
    file = find_file(backend, file_id, tenant)
    if file.purpose != "batch":
        message = f"File '{file_id}' has purpose '{file.purpose}'; a batch needs one uploaded with purpose 'batch'."
        raise UserError(message, param="input_file_id", code="invalid_value")
    limit = backend.settings.max_batch_bytes
    if file.bytes > limit:
        message = f"File '{file_id}' has {file.bytes} bytes; a batch takes {limit} (PRESSRUN_MAX_BATCH_BYTES)."
        raise UserError(message, param="input_file_id", code="file_too_large")
    return file


def _bad_value(param: str, value: str, allowed: Iterable[str]) -> UserError:
    names = ", ".join(f"'{name}'" for name in allowed)
    message = f"Invalid value: '{value}'. Supported values are: {names}."
    return UserError(message, param=param, code="invalid_value")
