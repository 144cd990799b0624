"""What the API says of files: OpenAI's objects. Times are Unix seconds."""

from __future__ import annotations

from typing import Literal

from ..jobs.records import File
from ..jobs.uploads import Part, Upload, UploadStatus
from .schemas import Identified


class FileObject(Identified):
    """An uploaded file, or a batch's results."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None = None

    @classmethod
    def of(cls, file: File) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=file.created_at,
            expires_at=file.expires_at,
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
        )


class UploadObject(Identified):
    """A file that is uploaded in parts; `file` is there once it is completed."""

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: UploadStatus
    file: FileObject | None

    @classmethod
    def of(cls, upload: Upload, file: FileObject | None) -> UploadObject:
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=upload.created_at,
            expires_at=upload.expires_at,
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.status,
            file=file,
        )


class UploadPartObject(Identified):
    """Some of an upload's bytes."""

    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: Part) -> UploadPartObject:
        return cls(id=part.id, created_at=part.created_at, upload_id=part.upload_id)


class FileDeleted(Identified):
    """The answer to deleting a file."""

    object: Literal["file"] = "file"
    deleted: Literal[True] = True
