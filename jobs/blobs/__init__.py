"""Blob stores: bytes under a key, on disk, in S3 or in Redis. The scheme of a URL picks the file.

A blob appears whole or not at all: a reader never sees a part of one, and putting it again replaces it. Keys are
`/`-separated names that Pressrun makes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol
from urllib.parse import unquote, urlsplit

from redis import Redis

from ..errors import SettingsError
from .disk import DiskBlobs
from .redis import RedisBlobs


class Blobs(Protocol):
    """What every blob store does. All methods are blocking and thread-safe; BlobsUnavailable is raised by any."""

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under `key` and return their size; durable when it returns."""

    def put_new(self, key: str, chunks: Iterable[bytes]) -> int:
        """The same, where no blob has that name. Raises BlobExists, and leaves what is there as it is.

        Of several writers one succeeds. Where the answer to that one is lost, it may find its own blob when it tries
        again: who cares compares what is there.
        """

    def join(self, pieces: Iterable[tuple[str, int]], target: str) -> int:
        """Store blobs, given by key and size, one behind the other under `target`; otherwise as `put`.

        They are copied within the store as far as it can do that. Raises BlobMissing.
        """

    def open(self, key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """The bytes from `offset`, at most `size` of them, in chunks. Raises BlobMissing at once."""

    def size(self, key: str) -> int:
        """The size in bytes. Raises BlobMissing."""

    def presign(self, key: str, *, filename: str, seconds: int) -> str | None:
        """A URL at which whoever has it may download the blob for so long; None where a store has no such."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that lie below the folder `prefix`, in order."""

    def delete(self, key: str) -> None:
        """Remove a blob; a missing one is no error."""

    def tidy(self, prefix: str, older_than_s: float) -> None:
        """Remove what writes below the folder `prefix` left behind that broke off, if they began so long ago."""


def open_blobs(url: str, redis: Redis) -> Blobs:
    """The blob store that a URL names: `file:///folder`, `s3://bucket/prefix` or `redis:` (the store's own Redis)."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return DiskBlobs(unquote(parts.path))
    if url == "redis:":
        return RedisBlobs(redis)
    if parts.scheme == "s3" and parts.netloc and not parts.query:
        from .s3 import S3Blobs  # boto3 takes its time, and only who uses it should

        return S3Blobs(parts.netloc, unquote(parts.path).strip("/"))
    raise SettingsError(f"PRESSRUN_BLOB_URL={url!r}: expected file:///folder, s3://bucket/prefix or redis:")
