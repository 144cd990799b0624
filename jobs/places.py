"""Objects in users' own buckets: what batches are made of, and where their results are wanted.

A request names only a bucket and a key, and only such as the operator allows; endpoint and credentials are those of
this process. An input becomes a file of ours before its lines are looked at, so that whatever becomes of the object
then, every line can be answered under its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from time import time
from typing import TYPE_CHECKING

from redis.lock import Lock

from .backend import Backend
from .errors import BlobExists, BlobForbidden, BlobMissing, BlobsUnavailable, NotFound, SettingsError, UserError
from .locks import while_locked
from .packing import unpacked
from .records import Batch, File
from .streams import at_most, checked_start, too_large

if TYPE_CHECKING:
    from .blobs import Blobs
    from .blobs.s3 import S3Blobs

SCHEME = "s3://"
MAX_KEY_BYTES = 1024
PATIENCE_S = 600  # How long the end of a batch waits for a bucket that does not answer.


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which places a parameter may name: those of `setting`, `bucket` or `bucket/folder` each."""

    param: str
    setting: str
    allowed: tuple[str, ...]

    def place(self, url: str) -> Place:
        """The place that a URL names, if it may. Raises UserError."""
        bucket, _, key = url.removeprefix(SCHEME).partition("/")
        if not url.startswith(SCHEME) or not bucket or not _is_plain(key):
            raise self.refusal(f"'{url}' is not s3://bucket/key, with a key whose parts are none of '', '.' and '..'.")
        if not any(f"{bucket}/{key}".startswith(f"{one}/") for one in self.allowed):
            known = "; allowed are " + ", ".join(self.allowed) if self.allowed else ", which allows none"
            raise self.refusal(f"'{url}' is none of the places of {self.setting}{known}.", "s3_not_allowed")
        return Place(bucket=bucket, key=key)

    def refusal(self, message: str, code: str = "invalid_value") -> UserError:
        return UserError(message, param=self.param, code=code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An object, or for a key that ends in `/` those below it."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def store(self, setting: str) -> S3Blobs:
        from .blobs.s3 import S3Blobs  # boto3 takes its time, and only who uses it should

        return S3Blobs(self.bucket, setting=setting)


def input_rules(backend: Backend) -> Rules:
    places = backend.settings.places(backend.settings.s3_inputs)
    return Rules(param="input_file_id", setting="PRESSRUN_S3_INPUTS", allowed=places)


def output_rules(backend: Backend) -> Rules:
    places = backend.settings.places(backend.settings.s3_outputs)
    return Rules(param="pressrun.output_prefix", setting="PRESSRUN_S3_OUTPUTS", allowed=places)


def find_input(backend: Backend, url: str) -> str:
    """What tells this version of an input from others. Raises UserError where it is not to be had, or too large."""
    rules = input_rules(backend)
    place = rules.place(url)
    try:
        unpacked(PurePosixPath(place.key).name, ())
        size, etag = place.store(rules.setting).version(place.key)
    except UserError as error:
        raise rules.refusal(error.message) from error
    except (BlobMissing, BlobForbidden, SettingsError) as error:
        raise rules.refusal(f"'{url}' is not there, or may not be read.", "object_not_found") from error
    limit = backend.settings.max_batch_bytes
    if size > limit:
        message = f"'{url}' has {size} bytes; a batch takes {limit} (PRESSRUN_MAX_BATCH_BYTES)."
        raise rules.refusal(message, "file_too_large")
    return etag


def check_prefix(backend: Backend, url: str) -> None:
    """Raises UserError where results may not be put below this prefix."""
    rules = output_rules(backend)
    if not url.endswith("/"):
        raise rules.refusal(f"'{url}' does not end in '/'.")
    place = rules.place(url)
    try:
        place.store(rules.setting)
    except SettingsError as error:
        raise rules.refusal(f"The bucket of '{url}' cannot be used: {error}") from error


def fetch_input(backend: Backend, batch: Batch, lock: Lock) -> None:
    """Make the object that a batch is made of its input file. UserError where that cannot be done any more."""
    if batch.input_url is None or _is_fetched(backend, batch):
        return
    settings, rules = backend.settings, input_rules(backend)
    limit = settings.max_batch_bytes
    bucket, _, key = batch.input_url.removeprefix(SCHEME).partition("/")
    try:
        chunks = Place(bucket=bucket, key=key).store(rules.setting).open(key, etag=batch.input_etag)
        name, lines = unpacked(PurePosixPath(key).name, while_locked(chunks, lock))
        lines = at_most(lines, limit, too_large(limit, "PRESSRUN_MAX_BATCH_BYTES"), "file")
        lines = checked_start(lines, settings.max_line_bytes)
        size = backend.blobs.put(batch.input_blob, while_locked(lines, lock))
    except BlobMissing as error:
        message = f"'{batch.input_url}' was changed or deleted since the batch was created."
        raise rules.refusal(message, "input_changed") from error
    except (BlobForbidden, SettingsError) as error:
        raise rules.refusal(f"'{batch.input_url}' may not be read any more.", "object_not_found") from error
    now = int(time())
    backend.store.add_file(
        File(
            id=batch.input_file_id,
            bytes=size,
            created_at=now,
            filename=name,
            purpose="batch",
            expires_at=now + settings.file_ttl_s,
            tenant=batch.tenant,
        )
    )


def deliver(backend: Backend, batch: Batch, files: Iterable[tuple[str, str]], lock: Lock) -> str | None:
    """Put files, given by name and blob, where the batch's results are wanted; why that was not possible.

    Nothing is replaced there: the names are fixed, and what lies under them may be another's by now.
    Raises BlobsUnavailable while it is worth trying again.
    """
    if batch.output_prefix is None:
        return None
    bucket, _, folder = batch.output_prefix.removeprefix(SCHEME).partition("/")
    try:
        store = Place(bucket=bucket, key=folder).store("PRESSRUN_S3_OUTPUTS")
        taken = [name for name, blob in files if not _put_once(store, f"{folder}{name}", backend.blobs, blob, lock)]
    except (SettingsError, BlobForbidden) as error:
        return str(error)
    except BlobsUnavailable as error:
        since = batch.times.get("cancelling_at") or batch.times.get("finalizing_at") or 0
        if time() - since < PATIENCE_S:
            raise
        return str(error)
    told = (f"'{batch.output_prefix}{name}' is there already and holds something else; it was left." for name in taken)
    return " ".join(told) or None


def _put_once(store: S3Blobs, key: str, blobs: Blobs, blob: str, lock: Lock) -> bool:
    """Copy a blob to where nothing is yet; False where something else is.

    What is there may be the same: the answer to an earlier try was lost, or who made it died before it could say so.
    """
    try:
        store.put_new(key, while_locked(blobs.open(blob), lock))
    except BlobExists:
        try:
            found = _digest(while_locked(store.open(key), lock))
        except BlobMissing as error:
            raise BlobsUnavailable(f"s3://{store.bucket}/{key} was deleted just now.") from error
        return found == _digest(while_locked(blobs.open(blob), lock))
    return True


def _digest(chunks: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def has_input(backend: Backend, batch: Batch) -> bool:
    """Whether the bytes of a batch's input are here."""
    try:
        backend.blobs.size(batch.input_blob)
    except BlobMissing:
        return False
    return True


def _is_fetched(backend: Backend, batch: Batch) -> bool:
    try:
        backend.store.file(batch.input_file_id)  # It is written down last.
    except NotFound:
        return False
    return has_input(backend, batch)


def _is_plain(key: str) -> bool:
    """Whether no server on the way could take the key for another one."""
    parts = key.removesuffix("/").split("/")
    return key.isprintable() and len(key.encode()) <= MAX_KEY_BYTES and not {"", ".", ".."} & set(parts)
