"""Blobs as objects in an S3 bucket: Amazon's, or anything that speaks its protocol.

An object appears whole by S3's own rules; large ones are uploaded in parts. Credentials, region and endpoint are for
boto3 to find (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL_S3, profiles, instance roles).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import quote

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

from ..errors import BlobExists, BlobForbidden, BlobMissing, BlobsUnavailable, SettingsError

log = logging.getLogger(__name__)

CHUNK = 2**20
# S3 takes 10,000 parts of at least 5 MiB. Parts double every thousand, so that there is no end before its own of 5 TiB.
PART_BYTES, PARTS_OF_A_SIZE = 8 * 2**20, 1000
MIN_PART_BYTES, MAX_COPY_BYTES = 5 * 2**20, 2**30
MOST_RESUMES = 5
CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    # Few, because boto3's pauses double: who waits for a store that is away hears soon that it is back.
    retries={"mode": "standard", "max_attempts": 3},
    max_pool_connections=32,
    signature_version="s3v4",
    # Newer checksums are unknown to many stores that are not Amazon's.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


class RangeEmpty(Exception):
    """The object is there, and the range begins behind its end."""


class S3Blobs:
    """Every key is an object `prefix/key` of one bucket. Raises SettingsError if there is no such bucket for us."""

    def __init__(self, bucket: str, prefix: str = "", *, setting: str = "PRESSRUN_BLOB_URL") -> None:
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        where = f"{setting}: the bucket {bucket!r}"
        try:
            self._client = _client()
            self._client.head_bucket(Bucket=bucket)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status < 500:
                what = {403: "may not be used with these credentials", 404: "does not exist"}
                raise SettingsError(f"{where} {what.get(status, 'cannot be used')} ({error})") from error
            log.warning("%s cannot be looked at: %s", where, error)
        except (NoCredentialsError, ProfileNotFound) as error:
            raise SettingsError(f"{where} needs credentials ({error})") from error
        except BotoCoreError as error:
            # It may be up by the time it is needed.
            log.warning("%s cannot be reached: %s", where, error)

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        return self._put_parts(key, _parts(chunks))

    def put_new(self, key: str, chunks: Iterable[bytes]) -> int:
        return self._put_parts(key, _parts(chunks), only_new=True)

    def join(self, pieces: Iterable[tuple[str, int]], target: str) -> int:
        return self._put_parts(target, self._joined(pieces))

    def open(self, key: str, offset: int = 0, size: int | None = None, *, etag: str | None = None) -> Iterator[bytes]:
        """With an `etag` of that version only: any other is as good as missing."""
        if size == 0:
            self.size(key)
            return iter(())
        last = "" if size is None else offset + size - 1
        version = {} if etag is None else {"IfMatch": etag}
        try:
            with self._speaking(key):
                response = self._client.get_object(**self._named(key), **version, Range=f"bytes={offset}-{last}")
        except RangeEmpty:
            return iter(())
        chunks = self._read(key, offset, response)
        next(chunks)  # Begun, so that whoever closes it without reading closes the connection.
        return chunks

    def size(self, key: str) -> int:
        with self._speaking(key):
            return int(self._client.head_object(**self._named(key))["ContentLength"])

    def presign(self, key: str, *, filename: str, seconds: int) -> str | None:
        shown = {"ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}"}
        with self._speaking(key):
            params = self._named(key) | shown
            return str(self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))

    def version(self, key: str) -> tuple[int, str]:
        """The size of an object, and the ETag that tells it from what may be put in its place. Raises BlobMissing."""
        with self._speaking(key):
            found = self._client.head_object(**self._named(key))
        return int(found["ContentLength"]), str(found["ETag"])

    def list(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}{prefix}/"
        )
        with self._speaking(prefix):
            keys = [found["Key"].removeprefix(self.prefix) for page in pages for found in page.get("Contents", ())]
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        with self._speaking(key):
            self._client.delete_object(**self._named(key))

    def tidy(self, prefix: str, older_than_s: float) -> None:
        until = time.time() - older_than_s
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}{prefix}/"
        )
        with self._speaking(prefix):
            for upload in (found for page in pages for found in page.get("Uploads", ())):
                if upload["Initiated"].timestamp() < until:
                    with suppress(BlobMissing):  # Another process tidies too.
                        self._abort(upload)

    def _abort(self, upload: Any) -> None:
        with self._speaking(upload["Key"]):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _put_parts(self, key: str, parts: Iterator[Part], *, only_new: bool = False) -> int:
        last = self._last_call(key, only_new=only_new)
        first = next(parts, b"")
        second = next(parts, None)
        if second is None and isinstance(first, bytes):
            with last as condition:
                self._client.put_object(**self._named(key), **condition, Body=first)
            return len(first)
        given = (first,) if second is None else (first, second)
        named = self._named(key)
        with self._speaking(key):
            upload: Any = named | {"UploadId": self._client.create_multipart_upload(**named)["UploadId"]}
        size, done = 0, []
        try:
            for number, part in enumerate(chain(given, parts), start=1):
                done.append({"PartNumber": number, "ETag": self._put_part(upload | {"PartNumber": number}, key, part)})
                size += len(part)
            with last as condition:
                self._client.complete_multipart_upload(**upload, **condition, MultipartUpload={"Parts": done})
        except BaseException:
            # Parts that are never completed cost their space until `tidy` or a bucket's own rules remove them.
            with suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**upload)
            raise
        return size

    @contextmanager
    def _last_call(self, key: str, *, only_new: bool) -> Iterator[dict[str, str]]:
        """Around the call that makes an object appear; gives what that is to say if it may replace none.

        An upload that is gone then was completed by a call whose answer was lost, as far as anybody can tell.
        """
        try:
            with self._speaking(key):
                yield {"IfNoneMatch": "*"} if only_new else {}
        except BlobMissing as error:
            if not only_new:
                raise
            raise BlobExists(key) from error

    def _put_part(self, place: dict[str, Any], key: str, part: Part) -> Any:
        if isinstance(part, bytes):
            with self._speaking(key):
                return self._client.upload_part(**place, Body=part)["ETag"]
        with self._speaking(part.key):
            last = part.start + part.size - 1
            source = {"CopySource": self._named(part.key), "CopySourceRange": f"bytes={part.start}-{last}"}
            return self._client.upload_part_copy(**place, **source)["CopyPartResult"]["ETag"]

    def _joined(self, pieces: Iterable[tuple[str, int]]) -> Iterator[Part]:
        """Objects as parts of an upload: large ones are copied within S3, small ones are read and sent together."""
        held = _Held()
        for key, size in pieces:
            # What is sent before a copy must be a whole part too, if need be with the beginning of what is copied.
            lent = max(MIN_PART_BYTES - held.size, 0) if held.size else 0
            is_copied = size - lent >= held.enough
            if read := lent if is_copied else size:
                yield from held.take(self.open(key, 0, read))
            if is_copied:
                yield from held.rest()
                yield from held.copies(key, lent, size)
        yield from held.rest()

    def _read(self, key: str, start: int, response: Any) -> Iterator[bytes]:
        """The bytes of that very object; a connection that breaks off is opened again where it was."""
        end, etag, resumes = start + int(response["ContentLength"]), response["ETag"], 0
        while True:
            before = start
            try:
                with self._speaking(key), response["Body"] as body:
                    yield b""
                    while start < end and (chunk := body.read(CHUNK)):
                        start += len(chunk)
                        yield chunk
                if start >= end:
                    return
            except BlobsUnavailable:
                if resumes >= MOST_RESUMES and start == before:
                    raise
            resumes = 0 if start > before else resumes + 1
            with self._speaking(key):
                response = self._client.get_object(**self._named(key), Range=f"bytes={start}-{end - 1}", IfMatch=etag)

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    @contextmanager
    def _speaking(self, key: str) -> Iterator[None]:
        """Errors of S3 as ours: an object that is not there, or not any more what it was, and everything else."""
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("404", "NoSuchKey", "NoSuchUpload", "412", "PreconditionFailed"):
                raise BlobMissing(key) from error
            if code == "InvalidRange":
                raise RangeEmpty from error
            # Some things stay as they are, whoever waits: what we may not do, and what such a store cannot.
            kind = BlobForbidden if code in ("403", "AccessDenied", "NotImplemented") else BlobsUnavailable
            raise kind(f"s3://{self.bucket}/{self.prefix}{key}: {error}") from error
        except BotoCoreError as error:
            raise BlobsUnavailable(f"s3://{self.bucket}/{self.prefix}{key}: {error}") from error


def _client() -> Any:
    session = boto3.Session()
    client: Any = session.client("s3", config=CONFIG)
    if client.meta.endpoint_url.endswith(".amazonaws.com"):
        return client
    # Elsewhere a bucket is seldom a host name of its own.
    return session.client("s3", config=CONFIG.merge(Config(s3={"addressing_style": "path"})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A range of an object, as a part of another."""

    key: str
    start: int
    size: int

    def __len__(self) -> int:
        return self.size


Part = bytes | Copy


class _Held:
    """Chunks on their way into parts: all but the last large enough, and few enough."""

    def __init__(self) -> None:
        self.size = 0
        self._chunks: list[bytes] = []
        self._num_parts = 0

    @property
    def enough(self) -> int:
        """The bytes of the next part."""
        return PART_BYTES << self._num_parts // PARTS_OF_A_SIZE

    def take(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._chunks.append(chunk)
            self.size += len(chunk)
            if self.size >= self.enough:
                yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        if self.size:
            whole = b"".join(self._chunks)
            self._chunks, self.size = [], 0
            self._num_parts += 1
            yield whole

    def copies(self, key: str, start: int, stop: int) -> Iterator[Copy]:
        """A range of an object in the fewest copies that S3 takes, all of about one size."""
        number = -(-(stop - start) // MAX_COPY_BYTES)
        ends = [start + (stop - start) * (i + 1) // number for i in range(number)]
        for one, end in zip((start, *ends), ends, strict=False):
            self._num_parts += 1
            yield Copy(key=key, start=one, size=end - one)


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as parts of an upload."""
    held = _Held()
    yield from held.take(chunks)
    yield from held.rest()
