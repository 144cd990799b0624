"""The Range header of RFC 9110, as far as downloads need it: one range of bytes."""

from __future__ import annotations

import re

from ..jobs.errors import UserError
from .errors import Refused

_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE)


def requested_range(header: str | None, size: int) -> range | None:
    """The bytes asked for, of a file of `size`; None for all of it.

    A header that is malformed, in other units or asks for several ranges is ignored, as the RFC allows. Raises 416
    for a range that lies outside the file.
    """
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None or match[0].strip().endswith("=-"):
        return None
    first, last = match[1], match[2]
    if not first:
        wanted = range(max(size - int(last), 0), size)
    elif last and int(last) < int(first):
        return None
    else:
        wanted = range(int(first), min(int(last) + 1, size) if last else size)
    if not wanted:
        error = UserError(
            f"The range '{header}' lies outside the file's {size} bytes.",
            code="range_not_satisfiable",
            status=416,
        )
        raise Refused(error, {"Content-Range": f"bytes */{size}"})
    return wanted
