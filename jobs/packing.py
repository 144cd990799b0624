"""Files in other forms than plain JSONL: unpacked as they come in, packed as they go out, a chunk at a time.

What lies in the blob store is always plain, so that a line has an offset. How far a file may unpack is the caller's to
say: nothing here gives more than a chunk at once, however small what it came from. Knows nothing of lines.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from .errors import UserError
from .parquet import lines_of_table, need_pyarrow, table_of_results

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 2**20
MAX_WINDOW_LOG = 25  # Of a zstd frame: 32 MiB, which each upload under way may take.
Chunks = Iterable[bytes]


class _Stream(io.RawIOBase):
    """Chunks as a file to read."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _file(chunks: Chunks) -> IO[bytes]:
    return io.BufferedReader(_Stream(chunks), CHUNK)  # type: ignore[type-var]


def _gunzip(chunks: Chunks) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=_file(chunks)) as file:
        yield from _read(file, "gzip", (gzip.BadGzipFile, EOFError, zlib.error))


def _unzstd(chunks: Chunks) -> Iterator[bytes]:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    with zstd.ZstdFile(_file(chunks), options=options) as file:
        yield from _read(file, "zstd", (zstd.ZstdError, EOFError))


def _read(file: gzip.GzipFile | zstd.ZstdFile, name: str, broken: tuple[type[Exception], ...]) -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(CHUNK)
        except broken as error:
            message = f"The file cannot be unpacked as {name}: {error}"
            raise UserError(message, param="file", code="invalid_compression") from error
        if not chunk:
            return
        yield chunk


def _gzip(chunks: Chunks) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=31)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def _zstd(chunks: Chunks) -> Iterator[bytes]:
    packer = zstd.ZstdCompressor()
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


# How the name of a batch's input may end, and what makes plain lines of it.
UNPACK: dict[str, Callable[[Chunks], Iterator[bytes]]] = {
    ".jsonl.gz": _gunzip,
    ".jsonl.zst": _unzstd,
    ".parquet": lines_of_table,
}
# What a batch's files can be had as.
PACK: dict[str, Callable[[Chunks], Iterator[bytes]]] = {
    "jsonl.gz": _gzip,
    "jsonl.zst": _zstd,
    "parquet": table_of_results,
}


def unpacked(filename: str, chunks: Chunks) -> tuple[str, Chunks]:
    """A file's name and bytes as plain JSONL. UserError for a name of another kind, or where it breaks off."""
    for suffix, unpack in UNPACK.items():
        if filename.endswith(suffix):
            return f"{filename.removesuffix(suffix)}.jsonl", unpack(chunks)
    _check_name(filename, "file")
    return filename, chunks


def check_form(filename: str, param: str) -> None:
    """UserError, at `param`, for a file that `unpacked` would refuse by its name or for want of a library."""
    if filename.endswith(".parquet"):
        need_pyarrow(param)
    elif not filename.endswith(tuple(UNPACK)):
        _check_name(filename, param)


def _check_name(filename: str, param: str) -> None:
    if not filename.endswith(".jsonl"):
        names = ", ".join((".jsonl", *UNPACK))
        message = f"Invalid file format for Batch API. Must be .jsonl, not '{filename}'. Taken are: {names}."
        raise UserError(message, param=param)
