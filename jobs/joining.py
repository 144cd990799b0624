"""From an upload's parts to its file.

The file's id follows from the parts and their order, so that whoever completes an upload twice writes the same file,
and nobody writes over another order's. One script makes the file known and ends the upload. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence

from .backend import Backend
from .errors import BlobMissing, Conflict, UserError
from .fields import as_text, file_fields
from .records import DEFAULT_TENANT, File
from .redis_keys import FILE_EXPIRY, SEQUENCE, file_key, file_list, stored_key
from .stored_files import no_room
from .submit import check_filled, file_ttl_s, plain_lines
from .tenants import TENANTS, limit_field
from .uploads import LIFE_S, UPLOADS, Upload, drop_parts, find_upload, part_blob, part_sizes, upload_key

_MD5 = re.compile(r"[0-9a-fA-F]{32}")


def complete_upload(
    backend: Backend, upload_id: str, part_ids: Sequence[str], md5: str | None = None, tenant: str = DEFAULT_TENANT
) -> Upload:
    """Join the parts in the order given into a file. A second time, with the same parts, changes nothing."""
    if md5 is not None and not _MD5.fullmatch(md5):
        raise UserError("Invalid value for 'md5': expected 32 hexadecimal digits.", param="md5", code="invalid_value")
    upload = find_upload(backend, upload_id, tenant)
    file_id = _file_id(upload_id, part_ids)
    if upload.status != "pending":
        return _as_completed(upload, file_id, md5)
    _check_parts(upload, part_ids, part_sizes(backend, upload_id))
    keys = [upload_key(upload_id), f"{upload_key(upload_id)}:joins", UPLOADS]
    now = int(time.time())
    reply = as_text(backend.store.scripts["join"](keys=keys, args=[now, file_id, upload_id, now + LIFE_S]))
    if reply != "pending":
        return _as_completed(find_upload(backend, upload_id, tenant), file_id, md5)
    try:
        file, digest = _join(backend, upload, part_ids, file_id, md5)
    except BlobMissing:
        ended = find_upload(backend, upload_id, tenant)
        if ended.status == "pending":
            raise
        # The parts went because the same call, made twice, was faster, or somebody gave the upload up.
        return _as_completed(ended, file_id, md5)
    done = _publish(backend, upload, file, digest)
    if done.file_id != file_id:
        backend.blobs.delete(file.blob)
    drop_parts(backend, upload_id)
    return _as_completed(done, file_id, md5)


def _check_parts(upload: Upload, part_ids: Sequence[str], sizes: dict[str, int]) -> None:
    """All there, each once, and together as large as the file was to be."""
    for place, part_id in enumerate(part_ids):
        if part_id not in sizes:
            message = f"The upload has no part '{part_id}'."
            raise UserError(message, param=f"part_ids[{place}]", code="invalid_value")
    if len(set(part_ids)) < len(part_ids):
        raise UserError("A part is named more than once.", param="part_ids", code="invalid_value")
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != upload.bytes:
        message = f"The parts have {total} bytes together; the upload was created for {upload.bytes}."
        raise UserError(message, param="part_ids", code="invalid_value")


def _as_completed(upload: Upload, file_id: str, md5: str | None) -> Upload:
    """The upload, if it was completed as this caller wants it."""
    if upload.status != "completed":
        raise Conflict(f"Cannot complete an upload with status '{upload.status}'.")
    if upload.file_id != file_id:
        raise Conflict("The upload was completed already, with other parts or in another order.")
    if md5 is not None and md5.lower() != upload.md5:
        raise _wrong_md5(md5, str(upload.md5))
    return upload


def _join(backend: Backend, upload: Upload, part_ids: Sequence[str], file_id: str, md5: str | None) -> tuple[File, str]:
    """Write the file's bytes; what it will be called, and its MD5. Raises UserError for what no file may be."""
    digest = hashlib.md5(usedforsecurity=False)

    def joined() -> Iterator[bytes]:
        for part_id in part_ids:
            for chunk in backend.blobs.open(part_blob(upload.id, part_id)):
                digest.update(chunk)
                yield chunk
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise _wrong_md5(md5, digest.hexdigest())

    filename, whole = upload.filename, joined()
    lines: Iterable[bytes] = whole
    if upload.purpose == "batch":
        filename, lines = plain_lines(backend.settings, filename, whole)
    try:
        size = _write(backend, f"files/{file_id}", lines)
    except UserError:
        for _ in whole if md5 is not None else ():
            pass  # Wrong parts, or a wrong order of them, would explain what is wrong with the file.
        raise
    now = int(time.time())
    ttl = file_ttl_s(backend.settings, upload.purpose, upload.expires_after_s)
    file = File(
        id=file_id,
        bytes=size,
        created_at=now,
        filename=filename,
        purpose=upload.purpose,
        expires_at=ttl and now + ttl,
        tenant=upload.tenant,
    )
    return file, digest.hexdigest()


def _write(backend: Backend, blob: str, lines: Iterable[bytes]) -> int:
    size = backend.blobs.put(blob, lines)
    if not size:  # Packed, nothing is something.
        backend.blobs.delete(blob)
    check_filled(size)
    return size


def _publish(backend: Backend, upload: Upload, file: File, digest: str) -> Upload:
    """Complete the upload with this file unless it has ended already; the upload as it is then."""
    keys = [upload_key(upload.id), file_key(file.id), file_list(file.tenant), FILE_EXPIRY, SEQUENCE]
    keys += [stored_key(file.tenant), TENANTS]
    limit = limit_field("max_stored_bytes", file.tenant)
    pairs = [part for pair in file_fields(file).items() for part in pair]
    args = [file.id, digest, file.expires_at or "", file.bytes, limit, *pairs]
    refusal = backend.store.scripts["complete"](keys=keys, args=args)
    if refusal is not None:
        backend.blobs.delete(file.blob)
        raise no_room(file, *map(int, refusal))
    return find_upload(backend, upload.id, upload.tenant)


def _wrong_md5(wanted: str, found: str) -> UserError:
    message = f"The file's MD5 is {found}, not {wanted}: what was uploaded is not what was meant to be."
    return UserError(message, param="md5", code="invalid_value")


def _file_id(upload_id: str, part_ids: Sequence[str]) -> str:
    """The same for the same parts in the same order; as secret as the upload's own id."""
    named = ",".join((upload_id, *part_ids))
    return f"file-{hashlib.sha256(named.encode(errors='surrogatepass')).hexdigest()[:30]}"
