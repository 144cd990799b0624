"""Where each line of an ended batch lies in its result files, so that they can be read on from any line.

The index is a small blob beside them, all numbers little-endian. Of a batch that was run in its file's order it has,
for each shard, its first line and where that begins in the output and in the error file, and then a bit for each line:
set where it is in the error file. Of an arranged batch it has the place of each line, in the order in which they were
run. Knows nothing of Redis.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from .blobs import Blobs
from .lines import split_lines
from .records import Batch, Segment

COUNT = struct.Struct("<Q")
BLOCK = struct.Struct("<QQQ")  # First line, offset in the output file, offset in the error file.
PLACE = struct.Struct("<QI")  # Twice the offset, and one more in the error file; size with the newline.
ORDER = struct.Struct("<I")
PORTION = 2**16


def block_index(blocks: Iterable[tuple[int, Segment]]) -> bytes:
    """The index of a batch in its file's order; `blocks` are the lines of each shard and their mapped segment."""
    records, bits = bytearray(), bytearray()
    line = output = error = num_blocks = 0
    for num_lines, segment in blocks:
        records += BLOCK.pack(line, output, error)
        bits += bytes((line + num_lines + 7) // 8 - len(bits))
        for i in range(num_lines) if segment.error else ():
            bits[(line + i) // 8] |= segment.is_error(i) << (line + i) % 8
        line, output, error = line + num_lines, output + segment.output, error + segment.error
        num_blocks += 1
    return COUNT.pack(num_blocks) + records + bits


class Places:
    """Takes in the lines of an arranged batch's files as they are written, and gives its index."""

    def __init__(self, num_lines: int) -> None:
        self._index = bytearray(PLACE.size * num_lines)

    def passing(self, lines: Iterable[tuple[int, bytes]], *, is_error: bool) -> Iterator[bytes]:
        """The lines of one file, given with their places among the requests."""
        offset = 0
        for index, line in lines:
            PLACE.pack_into(self._index, PLACE.size * index, offset << 1 | is_error, len(line))
            offset += len(line)
            yield line

    def index(self, order: Iterable[int]) -> Iterator[bytes]:
        """The index, for the places among the requests in the order in which they were run."""
        for index in order:
            yield bytes(self._index[PLACE.size * index : PLACE.size * (index + 1)])


def pack_order(order: Sequence[int]) -> Iterator[bytes]:
    """Places among the requests, in the order in which they are run, as a blob."""
    for start in range(0, len(order), PORTION):
        part = order[start : start + PORTION]
        yield struct.pack(f"<{len(part)}I", *part)


def read_order(blobs: Blobs, batch: Batch, first: int = 0, num_lines: int | None = None) -> array[int]:
    """The places of `num_lines` lines of an arranged batch from the `first` that is run. Raises BlobMissing."""
    size = None if num_lines is None else ORDER.size * num_lines
    raw = b"".join(blobs.open(batch.order_blob, ORDER.size * first, size))
    return array("I", (place for (place,) in ORDER.iter_unpack(raw)))


def indexed_lines(blobs: Blobs, batch: Batch, line: int, limit: int) -> Iterator[bytes]:
    """At most `limit` lines of an ended batch's files from the `line`-th that was run, without newlines.

    Raises BlobMissing where there is no index, or no file any more.
    """
    if batch.arranged:
        return _placed_lines(blobs, batch, line, limit)
    return _block_lines(blobs, batch, line, limit)


def lines_from(blobs: Blobs, key: str, offset: int = 0) -> Iterator[bytes]:
    """The lines of a blob from an offset on, without newlines. It is opened when the first is asked for."""
    with closing(blobs.open(key, offset)) as chunks:  # type: ignore[type-var]
        for _, line in split_lines(chunks, longest=sys.maxsize):
            yield line


def _block_lines(blobs: Blobs, batch: Batch, line: int, limit: int) -> Iterator[bytes]:
    raw = b"".join(blobs.open(batch.index_blob))
    (num_blocks,) = COUNT.unpack_from(raw)
    bits = memoryview(raw)[COUNT.size + BLOCK.size * num_blocks :]

    def block(number: int) -> tuple[int, int, int]:
        first, output, error = BLOCK.unpack_from(raw, COUNT.size + BLOCK.size * number)
        return first, output, error

    first, output, error = block(bisect_right(range(num_blocks), line, key=lambda number: block(number)[0]) - 1)
    with (
        closing(lines_from(blobs, batch.result_blob("output"), output)) as answers,  # type: ignore[type-var]
        closing(lines_from(blobs, batch.result_blob("error"), error)) as errors,  # type: ignore[type-var]
    ):
        for at in range(first, min(line + limit, batch.counts.total)):
            data = next(errors if bits[at // 8] >> at % 8 & 1 else answers)
            if at >= line:
                yield data


def _placed_lines(blobs: Blobs, batch: Batch, line: int, limit: int) -> Iterator[bytes]:
    raw = b"".join(blobs.open(batch.index_blob, PLACE.size * line, PLACE.size * limit))
    for place, size in PLACE.iter_unpack(raw):
        blob = batch.result_blob("error" if place & 1 else "output")
        yield b"".join(blobs.open(blob, place >> 1, size))[:-1]
