"""The road that all formats share: words up to a marker, the calls behind it, and so on to the end of the text.

Knows nothing of what stands behind a marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..deltas import Delta
from .calls import MOST_CALLS
from .source import Source, Steps, content, words_until


def marked_calls(
    source: Source, marker: str, told: Callable[[], Steps[bool]], *, after_call: bool = False
) -> Iterator[Delta | None]:
    """`told` tells the calls that come next, and says whether there were any.

    A marker that no call follows stays content, and so does what follows it.
    """
    for _ in range(MOST_CALLS):
        found = yield from words_until(source, marker, trim=after_call)
        if found is None:
            return
        after_call = yield from told()
        if not after_call:
            yield content(found)
    yield from _rest(source)


def _rest(source: Source) -> Iterator[Delta | None]:
    """All that is left is content."""
    while True:
        if source.rest:
            yield content(source.take(len(source.rest)))
        if source.ended:
            return
        yield None
