"""Files that are uploaded in parts: begun, filled in any order, given up, swept away. `joining.py` makes them files.

An upload's parts are blobs of their own until it is completed. Any process may die between any two calls: what it
leaves is found when the upload's time has come (`sweep_uploads`). Knows nothing of HTTP.

| key | what |
|---|---|
| `pressrun:upload:{id}` | an upload: its fields and status |
| `pressrun:upload:{id}:parts` | its parts' sizes |
| `pressrun:upload:{id}:joins` | the files that its parts were to become |
| `pressrun:uploads` | upload ids by the time of their next sweeping |
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from . import ids
from .backend import Backend
from .errors import Conflict, NotFound, UserError
from .fields import as_text
from .packing import check_form
from .records import DEFAULT_TENANT
from .redis_keys import file_key
from .streams import at_most
from .submit import check_expiry, check_known

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]
UPLOADS = "pressrun:uploads"
LIFE_S = 3600
KEPT_S = 86400  # How long an ended upload is known, so that what comes late is answered and swept.
MAX_PART_BYTES = 64 * 2**20
MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of `bytes` that is being uploaded, or was. `expires_after_s` is said of the file, `expires_at` of this."""

    id: str
    bytes: int
    filename: str
    purpose: str
    mime_type: str
    created_at: int
    expires_at: int
    expires_after_s: int | None = None
    status: UploadStatus = "pending"
    file_id: str | None = None
    md5: str | None = None
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some of an upload's bytes."""

    id: str
    upload_id: str
    created_at: int


def upload_key(upload_id: str) -> str:
    return f"pressrun:upload:{{{upload_id}}}"


def create_upload(
    backend: Backend,
    *,
    filename: str,
    purpose: str,
    size: int,
    mime_type: str,
    expires_after_s: int | None = None,
    tenant: str = DEFAULT_TENANT,
    upload_id: str | None = None,
) -> Upload:
    """Begin an upload; its parts are awaited for an hour."""
    check_known(purpose)
    if purpose == "batch":
        check_form(filename, "filename")
    check_expiry(expires_after_s, "expires_after.seconds")
    _check_size(backend, purpose, filename, size)
    now = int(time.time())
    upload = Upload(
        id=upload_id or new_upload_id(),
        bytes=size,
        filename=filename,
        purpose=purpose,
        mime_type=mime_type,
        created_at=now,
        expires_at=now + LIFE_S,
        expires_after_s=expires_after_s,
        tenant=tenant,
    )
    fields: dict[str, Any] = {name: value for name, value in asdict(upload).items() if value is not None}
    pairs = [part for pair in (fields | {"held": 0}).items() for part in pair]
    # First, so that one is swept whatever becomes of this process. One that is there stays as it is.
    backend.redis.zadd(UPLOADS, {upload.id: upload.expires_at}, nx=True)
    backend.store.scripts["create"](keys=[upload_key(upload.id)], args=pairs)
    return upload


def new_upload_id() -> str:
    return ids.new_id("upload_")


def find_upload(backend: Backend, upload_id: str, tenant: str = DEFAULT_TENANT) -> Upload:
    """The tenant's upload with this id, or NotFound."""
    raw: dict[Any, Any] = backend.redis.hgetall(upload_key(upload_id))
    if not raw or as_text(raw.get(b"tenant", DEFAULT_TENANT)) != tenant:
        raise NotFound(f"No such Upload object: {upload_id}", param="id")
    fields: dict[str, Any] = {as_text(name): as_text(value) for name, value in raw.items()}
    del fields["held"]
    for name in ("bytes", "created_at", "expires_at", "expires_after_s"):
        if name in fields:
            fields[name] = int(fields[name])
    upload = Upload(**fields)
    is_late = upload.status == "pending" and upload.expires_at <= time.time()
    return replace(upload, status="expired") if is_late else upload


def add_part(backend: Backend, upload_id: str, chunks: Iterable[bytes], tenant: str = DEFAULT_TENANT) -> Part:
    """Store some of an upload's bytes; many parts may come at once."""
    upload = find_upload(backend, upload_id, tenant)
    _need_pending(upload.status)
    part = Part(id=ids.new_id("part_"), upload_id=upload_id, created_at=int(time.time()))
    most = min(MAX_PART_BYTES, upload.bytes)
    chunks = at_most(chunks, most, f"The part is larger than {most} bytes, the most for a part of this upload.", "data")
    blob = part_blob(upload_id, part.id)
    try:
        size = backend.blobs.put(blob, chunks)
        if not size:
            raise UserError("The part is empty.", param="data", code="empty_file")
        keys = [upload_key(upload_id), f"{upload_key(upload_id)}:parts"]
        reply = as_text(backend.store.scripts["add_part"](keys=keys, args=[part.created_at, part.id, size, MAX_PARTS]))
        _check_added(reply, upload)
    except UserError:
        backend.blobs.delete(blob)
        raise
    return part


def cancel_upload(backend: Backend, upload_id: str, tenant: str = DEFAULT_TENANT) -> Upload:
    """Give an upload up, with its parts. Repeating it is harmless."""
    find_upload(backend, upload_id, tenant)
    status = _end(backend, upload_id, "cancelled")
    if status == "cancelled":
        drop_parts(backend, upload_id)
    elif status != "missing":
        raise Conflict(f"Cannot cancel an upload with status '{status}'.")
    return find_upload(backend, upload_id, tenant)


def sweep_uploads(backend: Backend, now: float) -> None:
    """End uploads whose time is up, and delete what is left of ended ones. May be done twice."""
    for raw in backend.redis.zrangebyscore(UPLOADS, "-inf", now, start=0, num=100):
        upload_id = as_text(raw)
        _end(backend, upload_id, "expired")
        drop_parts(backend, upload_id)
        _drop_joins(backend, upload_id)
        key = upload_key(upload_id)
        created_at = backend.redis.hget(key, "created_at")
        if created_at is not None and now < int(created_at) + KEPT_S:
            backend.redis.zadd(UPLOADS, {upload_id: int(created_at) + KEPT_S})
        else:
            backend.redis.delete(key, f"{key}:parts", f"{key}:joins")
            backend.redis.zrem(UPLOADS, upload_id)


def _check_size(backend: Backend, purpose: str, filename: str, size: int) -> None:
    """What a packed file comes to is known only when it is whole."""
    limit, setting = backend.settings.max_upload_bytes, "PRESSRUN_MAX_UPLOAD_BYTES"
    if purpose == "batch" and filename.endswith(".jsonl") and backend.settings.max_batch_bytes < limit:
        limit, setting = backend.settings.max_batch_bytes, "PRESSRUN_MAX_BATCH_BYTES"
    if size < 1:
        raise UserError("Invalid value for 'bytes': expected 1 or more.", param="bytes", code="invalid_value")
    if size > limit:
        message = f"The file has {size} bytes; with purpose '{purpose}' at most {limit} are taken ({setting})."
        raise UserError(message, param="bytes", code="file_too_large", status=413)


def _need_pending(status: str) -> None:
    if status != "pending":
        raise Conflict(f"Cannot add parts to an upload with status '{status}'.")


def _check_added(reply: str, upload: Upload) -> None:
    if reply == "many":
        raise UserError(f"The upload has {MAX_PARTS} parts; send larger ones.", param="data", code="too_many_parts")
    if reply == "large":
        message = f"The upload's parts hold more than twice its {upload.bytes} bytes; cancel it and begin another."
        raise UserError(message, param="data", code="file_too_large", status=413)
    if reply != "ok":
        _need_pending(reply)


def _end(backend: Backend, upload_id: str, to: Literal["cancelled", "expired"]) -> str:
    args: list[Any] = [int(time.time()), to]
    return as_text(backend.store.scripts["end_upload"](keys=[upload_key(upload_id)], args=args))


def drop_parts(backend: Backend, upload_id: str) -> None:
    """Delete the bytes of an ended upload's parts. May be done twice."""
    for key in backend.blobs.list(f"uploads/{upload_id}"):
        backend.blobs.delete(key)


def _drop_joins(backend: Backend, upload_id: str) -> None:
    """Delete the bytes that were joined into files which nobody has."""
    for raw in backend.redis.smembers(f"{upload_key(upload_id)}:joins"):
        file_id = as_text(raw)
        if not backend.redis.exists(file_key(file_id)):
            backend.blobs.delete(f"files/{file_id}")


def part_sizes(backend: Backend, upload_id: str) -> dict[str, int]:
    """Bytes by part."""
    raw: dict[Any, Any] = backend.redis.hgetall(f"{upload_key(upload_id)}:parts")
    return {as_text(part_id): int(size) for part_id, size in raw.items()}


def part_blob(upload_id: str, part_id: str) -> str:
    """Where a part's bytes lie until the upload ends."""
    return f"uploads/{upload_id}/{part_id}"
