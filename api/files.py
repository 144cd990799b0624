"""`/v1/files`: upload, list, retrieve, delete, download.

The multipart parser spools an upload to the temporary folder, so that `purpose` may stand after the file; from there
it is streamed to the blob store. The rules of what may be uploaded are `jobs/submit.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Header, Query, UploadFile
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from ..jobs import ids, submit
from ..jobs.backend import Backend
from ..jobs.errors import UserError
from ..jobs.packing import PACK
from ..jobs.records import File
from .deps import BackendDep, TenantDep
from .file_schemas import FileDeleted, FileObject
from .once import OnceDep
from .ranges import requested_range
from .schemas import ListOf

router = APIRouter(prefix="/v1/files", tags=["files"])
CHUNK = 2**20
PRESIGNED_S = 900


class Download(StreamingResponse):
    """Chunks of a blob, which is let go of even when the client goes away in the middle."""

    def __init__(self, chunks: Iterator[bytes], status: int, headers: dict[str, str]) -> None:
        self.chunks = _relayed(chunks)
        super().__init__(self.chunks, status, headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.chunks.close()


class Upload(BaseModel):
    """The form of an upload."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    purpose: str = Field(description="What the file is for: `batch` for the input of a batch.")
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(
        None,
        alias="expires_after[seconds]",
        description="Delete the file this long after its creation: 3600 to 2592000.",
    )


class FileQuery(BaseModel):
    """Which files to list, and where to go on."""

    model_config = ConfigDict(extra="forbid")

    purpose: str | None = None
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, description="The id of the last file of the page before.")


class ContentQuery(BaseModel):
    """How to get a file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"] | None = Field(
        None, description="Of a batch's files: what to make of them on the way. A range is of the plain file only."
    )
    redirect: bool = Field(False, description="Answer with a URL in S3 that is good for 15 minutes.")


@router.post("", form_limits={"max_files": 1, "max_fields": 8, "max_part_size": 4096})
def upload_file(
    form: Annotated[Upload, Form(media_type="multipart/form-data")],
    backend: BackendDep,
    tenant: TenantDep,
    once: OnceDep,
) -> FileObject:
    """Upload a file. The input of a batch is `.jsonl`, one request a line, or that packed, or a table."""
    _check_expiry(form)
    file = once(
        lambda: _asked(form),
        new_id=ids.file_id,
        find=lambda file_id: submit.find_file(backend, file_id, tenant),
        create=lambda file_id: submit.create_file(
            backend,
            filename=form.file.filename or "upload",
            purpose=form.purpose,
            chunks=chunks_of(form.file.file),
            expires_after_s=form.seconds,
            tenant=tenant,
            file_id=file_id,
        ),
    )
    return FileObject.of(file)


@router.get("")
def list_files(query: Annotated[FileQuery, Query()], backend: BackendDep, tenant: TenantDep) -> ListOf[FileObject]:
    """Files that have not expired, newest first unless asked otherwise."""
    page = backend.store.files(
        tenant=tenant,
        purpose=query.purpose,
        limit=query.limit,
        newest_first=query.order == "desc",
        after=query.after,
    )
    return ListOf.of([FileObject.of(file) for file in page.items], page.has_more)


@router.get("/{file_id}")
def retrieve_file(file_id: str, backend: BackendDep, tenant: TenantDep) -> FileObject:
    """A file's description."""
    return FileObject.of(submit.find_file(backend, file_id, tenant))


@router.delete("/{file_id}")
def delete_file(file_id: str, backend: BackendDep, tenant: TenantDep) -> FileDeleted:
    """Delete a file and its bytes."""
    submit.delete_file(backend, file_id, tenant)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The file.", "content": {"application/octet-stream": {}}},
        206: {"description": "The range asked for.", "content": {"application/octet-stream": {}}},
        307: {"description": "Where the file is, with `redirect`."},
    },
)
def download_file(
    file_id: str,
    query: Annotated[ContentQuery, Query()],
    backend: BackendDep,
    tenant: TenantDep,
    wanted: Annotated[str | None, Header(alias="Range", description="One range, such as `bytes=0-999`.")] = None,
) -> Response:
    """A file's bytes, or one range of them; a batch's results also packed or as a table (`format`)."""
    file = submit.find_file(backend, file_id, tenant)
    packed = query.format not in (None, "jsonl")
    if query.redirect and packed:
        message = "'redirect' leads to the plain file; remove it or 'format'."
        raise UserError(message, param="redirect", code="invalid_value")
    if query.redirect:
        return _redirect(backend, file)
    if packed:
        return _packed(backend, file, str(query.format))
    part = requested_range(wanted, file.bytes)
    whole = range(file.bytes) if part is None else part
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(len(whole))} | _named(file.filename)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.bytes}"
    chunks = backend.blobs.open(file.blob, whole.start, len(whole))
    return Download(chunks, 200 if part is None else 206, headers)


def _packed(backend: Backend, file: File, form: str) -> Download:
    """A file packed as it goes; nobody knows its size before."""
    purposes = ("batch_output",) if form == "parquet" else ("batch", "batch_output")
    if file.purpose not in purposes:
        message = f"'{form}' can be made of files with purpose {' or '.join(purposes)}, not '{file.purpose}'."
        raise UserError(message, param="format", code="invalid_value")
    chunks = PACK[form](backend.blobs.open(file.blob))
    return Download(chunks, 200, _named(f"{file.filename.removesuffix('.jsonl')}.{form}"))


def _named(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}"}


def _redirect(backend: Backend, file: File) -> RedirectResponse:
    url = backend.blobs.presign(file.blob, filename=file.filename, seconds=PRESIGNED_S)
    if url is None:
        message = (
            "'redirect' needs files in S3 (PRESSRUN_BLOB_URL=s3://…), and this server keeps them elsewhere. Remove it."
        )
        raise UserError(message, param="redirect", code="unsupported_parameter")
    return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})


def _relayed(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The same chunks; closing this closes what they come from."""
    yield from chunks


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """What a form's file holds."""
    return iter(lambda: file.read(CHUNK), b"")


def _asked(form: Upload) -> list[object]:
    """What tells an upload from another: its fields and its content."""
    digest = hashlib.sha256()
    for chunk in chunks_of(form.file.file):
        digest.update(chunk)
    form.file.file.seek(0)
    return [form.file.filename, form.purpose, form.seconds, digest.hexdigest()]


def _check_expiry(form: Upload) -> None:
    """Both parts of `expires_after`, or neither."""
    if (form.anchor is None) != (form.seconds is None):
        param = "expires_after.anchor" if form.anchor is None else "expires_after.seconds"
        message = f"Missing required parameter: '{param}'."
        raise UserError(message, param=param, code="missing_required_parameter")
