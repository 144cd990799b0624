"""Blobs as files in a folder. A blob is written beside its place, synced, and renamed into it."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import BlobExists, BlobMissing, BlobsUnavailable

CHUNK = 2**20
# What a disk says that is full, or fails, or is not mounted as it should be: all of it may pass.
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
# File systems that copy nothing by themselves say so in one of these ways.
NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class DiskBlobs:
    """Every key is a path below `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        with self._draft(key) as out:
            return sum(out.write(chunk) for chunk in chunks)

    def put_new(self, key: str, chunks: Iterable[bytes]) -> int:
        try:
            with self._draft(key, place=os.link) as out:
                return sum(out.write(chunk) for chunk in chunks)
        except FileExistsError as error:
            raise BlobExists(key) from error

    def join(self, pieces: Iterable[tuple[str, int]], target: str) -> int:
        with self._draft(target) as out:
            return sum(self._append(key, out) for key, _ in pieces)

    def open(self, key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        try:
            file = open(self._path(key), "rb")  # noqa: SIM115 (the iterator closes it)
        except FileNotFoundError as error:
            raise BlobMissing(key) from error

        def read() -> Iterator[bytes]:
            left = size
            with file:
                yield b""
                file.seek(offset)
                while left is None or left > 0:
                    chunk = file.read(CHUNK if left is None else min(CHUNK, left))
                    if not chunk:
                        return
                    if left is not None:
                        left -= len(chunk)
                    yield chunk

        chunks = read()
        next(chunks)  # Begun, so that whoever closes it without reading closes the file.
        return chunks

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError as error:
            raise BlobMissing(key) from error

    def presign(self, key: str, *, filename: str, seconds: int) -> str | None:
        return None

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._path(prefix)
        paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".part"))
        return iter(sorted(path.relative_to(self.root).as_posix() for path in paths))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def tidy(self, prefix: str, older_than_s: float) -> None:
        until = time.time() - older_than_s
        for draft in self._path(prefix).rglob(".*.part"):
            with suppress(FileNotFoundError):  # Another process tidies too.
                if draft.stat().st_mtime < until:
                    draft.unlink()

    @contextmanager
    def _draft(self, key: str, place: Callable[[Path, Path], None] = os.replace) -> Iterator[IO[bytes]]:
        """A file that becomes the blob if nothing is raised; `place` gives it its name."""
        path = self._path(key)
        with _writing(key):
            _make_folder(path.parent)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
            try:
                with open(draft, "wb") as out:
                    yield out
                    out.flush()
                    os.fsync(out.fileno())
                place(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def _append(self, key: str, out: IO[bytes]) -> int:
        """Copy a blob to the end of a file, in the kernel where it can."""
        try:
            source = open(self._path(key), "rb", buffering=0)  # noqa: SIM115 (closed below)
        except FileNotFoundError as error:
            raise BlobMissing(key) from error
        with source:
            out.flush()
            size = _copy_in_kernel(source, out)
            out.seek(0, os.SEEK_END)
            for chunk in iter(lambda: source.read(CHUNK), b""):
                size += out.write(chunk)
        return size

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        assert path.is_relative_to(self.root.resolve()), f"blob key leaves the store: {key}"
        return path


@contextmanager
def _writing(key: str) -> Iterator[None]:
    """A disk that takes nothing now as BlobsUnavailable, so that who writes waits for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in PASSING:
            raise
        raise BlobsUnavailable(f"{key} cannot be written: {error.strerror}") from error


def _copy_in_kernel(source: IO[bytes], out: IO[bytes]) -> int:
    """Copy as much as the file system does by itself, which may be nothing; the bytes copied."""
    size = 0
    try:
        while copied := os.copy_file_range(source.fileno(), out.fileno(), 2**30):
            size += copied
    except OSError as error:
        if error.errno not in NO_COPY:
            raise
    return size


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is durable once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
