"""Checks on bytes as they pass. Knows nothing of where they come from or go to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .errors import UserError
from .validation import parse_object


def at_most(chunks: Iterable[bytes], limit: int, refusal: str, param: str) -> Iterator[bytes]:
    """Passes chunks on; a UserError that says `refusal` once they are more than `limit` bytes."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise UserError(refusal, param=param, code="file_too_large", status=413)
        yield chunk


def too_large(limit: int, setting: str) -> str:
    """What to say of a file that is larger than `limit`, which `setting` sets."""
    return f"The file is larger than {limit} bytes ({setting})."


def checked_start(chunks: Iterable[bytes], longest: int) -> Iterator[bytes]:
    """Passes chunks on, once the first line that is not blank turned out to be a JSON object."""
    stream, head = iter(chunks), b""
    while b"\n" not in head.lstrip() and len(head) <= longest:
        chunk = next(stream, None)
        if chunk is None:
            break
        head += chunk
    first = head.lstrip().split(b"\n", 1)[0]
    if first and parse_object(first) is None:
        raise UserError("Line 1 of the file is not a JSON object.", param="file", code="invalid_json_line")
    yield head
    yield from stream
