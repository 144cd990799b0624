"""`/v1/uploads`: a file in parts. The rules are those of `jobs/uploads.py` and `jobs/joining.py`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..jobs import joining, uploads
from ..jobs.backend import Backend
from ..jobs.errors import NotFound
from ..jobs.invalid import whole_text
from ..jobs.uploads import MAX_PARTS, Upload
from .deps import BackendDep, TenantDep
from .expiry import ExpiresAfter, seconds_of
from .file_schemas import FileObject, UploadObject, UploadPartObject
from .files import chunks_of
from .once import OnceDep

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
Text = Annotated[str, AfterValidator(whole_text)]


class UploadCreate(BaseModel):
    """A file that is to come in parts."""

    model_config = ConfigDict(extra="forbid")

    filename: Text = Field(
        min_length=1,
        max_length=1024,
        description="The file's name; a batch file's ends as it may in `/v1/files`, and the parts are that file's.",
    )
    purpose: str = Field(description="What the file is for: `batch` for the input of a batch.")
    bytes: int = Field(strict=True, description="The file's size. The parts must have as many bytes together.")
    mime_type: Text = Field(
        max_length=255, description="The file's type. It is noted; what a file holds is judged by its bytes."
    )
    expires_after: ExpiresAfter | None = Field(
        None, description="How long the file is kept once it is completed. Without it, as long as its purpose has it."
    )


class PartForm(BaseModel):
    """The form of a part."""

    model_config = ConfigDict(extra="forbid")

    data: UploadFile


class UploadComplete(BaseModel):
    """The parts that make the file."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str] = Field(min_length=1, max_length=MAX_PARTS, description="In the order of their bytes.")
    md5: str | None = Field(None, description="The whole file's MD5, to be compared with what has arrived.")


@router.post("")
def create_upload(body: UploadCreate, backend: BackendDep, tenant: TenantDep, once: OnceDep) -> UploadObject:
    """Begin to upload a file in parts, which are awaited for an hour."""
    upload = once(
        body,
        new_id=uploads.new_upload_id,
        find=lambda upload_id: uploads.find_upload(backend, upload_id, tenant),
        create=lambda upload_id: uploads.create_upload(
            backend,
            filename=body.filename,
            purpose=body.purpose,
            size=body.bytes,
            mime_type=body.mime_type,
            expires_after_s=seconds_of(body.expires_after),
            tenant=tenant,
            upload_id=upload_id,
        ),
    )
    return _shown(backend, upload)


@router.post("/{upload_id}/parts", form_limits={"max_files": 1, "max_fields": 4, "max_part_size": 4096})
def add_part(
    upload_id: str,
    form: Annotated[PartForm, Form(media_type="multipart/form-data")],
    backend: BackendDep,
    tenant: TenantDep,
) -> UploadPartObject:
    """Add a part of at most 64 MiB. Many may be sent at once."""
    return UploadPartObject.of(uploads.add_part(backend, upload_id, chunks_of(form.data.file), tenant))


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: str, body: UploadComplete, backend: BackendDep, tenant: TenantDep) -> UploadObject:
    """Join the parts, in the order of `part_ids`, into a file."""
    return _shown(backend, joining.complete_upload(backend, upload_id, body.part_ids, body.md5, tenant))


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, backend: BackendDep, tenant: TenantDep) -> UploadObject:
    """Give an upload up, with its parts."""
    return UploadObject.of(uploads.cancel_upload(backend, upload_id, tenant), None)


def _shown(backend: Backend, upload: Upload) -> UploadObject:
    """With its file, unless it has none or that has been deleted since."""
    try:
        file = FileObject.of(backend.store.file(str(upload.file_id)))
    except NotFound:
        file = None
    return UploadObject.of(upload, file)
