"""Files in Redis: what is known of them, who has how many bytes, and when they expire. Knows nothing of their bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .connection import Connection
from .errors import NotFound, QuotaExceeded
from .fields import as_text, file_fields, parse_file
from .records import DEFAULT_TENANT, File, Page
from .redis_keys import FILE_EXPIRY, SEQUENCE, UNFINISHED, file_key, file_list, stored_key
from .tenants import TENANTS, limit_field


class StoredFiles(Connection):
    """The files of all tenants. Thread-safe; every method is one or a few round trips."""

    def begin_upload(self, file_id: str) -> None:
        """Note that a file's bytes are on their way, so that they are found if its description never follows."""
        self.redis.zadd(UNFINISHED, {file_id: self.now()})

    def broken_uploads(self, older_than_s: float, limit: int = 1000) -> list[str]:
        """Ids of files that were begun so long ago and never came to a description."""
        until = self.now() - older_than_s
        return [as_text(raw) for raw in self.redis.zrangebyscore(UNFINISHED, "-inf", until, start=0, num=limit)]

    def add_file(self, file: File, *, limited: bool = False) -> None:
        """Write a file's description; writing the same one again changes nothing.

        `limited` raises QuotaExceeded where its tenant has no room for it: results are written whatever there is.
        """
        keys = [file_key(file.id), file_list(file.tenant), SEQUENCE, FILE_EXPIRY, stored_key(file.tenant), TENANTS]
        expires_at = "" if file.expires_at is None else file.expires_at
        limit = limit_field("max_stored_bytes", file.tenant) if limited else ""
        fields = [part for pair in file_fields(file).items() for part in pair]
        refusal = self.scripts["add_file"](
            keys=[*keys, UNFINISHED], args=[file.id, file.bytes, expires_at, limit, *fields]
        )
        if refusal is not None:
            raise no_room(file, *map(int, refusal))

    def file(self, file_id: str) -> File:
        """The file, or NotFound; an expired file is not found."""
        file = self.known_file(file_id)
        if file is None or (file.expires_at is not None and file.expires_at <= time.time()):
            raise NotFound(f"No such File object: {file_id}", param="id")
        return file

    def known_file(self, file_id: str) -> File | None:
        """What is known of a file, expired or not."""
        fields = self.redis.hgetall(file_key(file_id))
        return parse_file(fields) if fields else None

    def files(
        self,
        *,
        tenant: str = DEFAULT_TENANT,
        purpose: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
        after: str | None = None,
    ) -> Page[File]:
        """A tenant's files of `purpose` (None: all) beyond the file `after`, at most `limit`."""
        items: list[File] = []
        num_read = max(limit, 99) + 1  # A purpose that few files have is not looked for one by one.
        while True:
            page = self.page(file_list(tenant), num_read, newest_first, after)
            items += [file for file in self._live_files(page) if purpose in (None, file.purpose)]
            if len(items) > limit:
                return Page(items=items[:limit], has_more=True)
            if len(page) < num_read:
                return Page(items=items, has_more=False)
            after = page[-1]

    def _live_files(self, ids: Iterable[str]) -> list[File]:
        """Those of the files that exist and have not expired, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        for file_id in ids:
            pipe.hgetall(file_key(file_id))
        files, now = [parse_file(fields) for fields in pipe.execute() if fields], time.time()
        return [file for file in files if file.expires_at is None or file.expires_at > now]

    def retire_file(self, file_id: str) -> None:
        """Make a file expire now, or raise NotFound. Its bytes are the caller's to delete."""
        if not self.scripts["retire"](keys=[file_key(file_id), FILE_EXPIRY], args=[file_id, int(time.time())]):
            raise NotFound(f"No such File object: {file_id}", param="id")

    def forget_file(self, file_id: str) -> None:
        """Drop what is known of a file. Harmless where nothing is."""
        raw: Any = self.redis.hget(file_key(file_id), "tenant")
        tenant = DEFAULT_TENANT if raw is None else as_text(raw)
        keys = [file_key(file_id), file_list(tenant), FILE_EXPIRY, stored_key(tenant), UNFINISHED]
        self.scripts["forget_file"](keys=keys, args=[file_id])

    def stored_bytes(self, tenant: str) -> int:
        """The bytes of all files of a tenant that were stored since they are counted."""
        return int(self.redis.hget(stored_key(tenant), "total") or 0)

    def expired_files(self, now: float, limit: int = 1000) -> list[str]:
        """Ids of files whose time has come."""
        return [as_text(raw) for raw in self.redis.zrangebyscore(FILE_EXPIRY, "-inf", now, start=0, num=limit)]


def no_room(file: File, most: int, stored: int) -> QuotaExceeded:
    """What a tenant hears that stores too much."""
    message = f"The file's {file.bytes} bytes do not fit beside the {stored} stored: at most {most} may be."
    return QuotaExceeded(f"{message} Delete files that are not needed.", param="file", code="storage_limit_exceeded")
