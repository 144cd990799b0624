"""Thoughts, which stand between two tags before the answer; the first tag may be the end of the prompt.

Knows nothing of what the answer holds: another parser reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..deltas import Delta, Parser
from .source import Source, Steps, blank_end, words_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What stands around a thought."""

    open: str
    close: str


def read(source: Source, tags: Tags, inner: Parser, *, opened: bool) -> Iterator[Delta | None]:
    """White space around a thought is dropped. What does not begin with a thought is all for `inner`."""
    said_again = yield from _is_next(source, tags.open)
    if said_again or opened:
        closed = yield from words_until(source, tags.close, trim=True, tell=_thought)
        if closed is None:
            return
        source.take((yield from blank_end(source, 0)))
    while True:
        yield from inner.feed(source.take(len(source.rest)))
        if source.ended:
            yield from inner.close()
            return
        yield None


def _thought(words: str) -> Delta:
    return Delta(reasoning_content=words)


def _is_next(source: Source, tag: str) -> Steps[bool]:
    """Take the tag if it comes next."""
    start = yield from blank_end(source, 0)
    while not source.ended and len(source.rest) < start + len(tag) and tag.startswith(source.rest[start:]):
        yield None
    found = source.rest.startswith(tag, start)
    source.take((start + len(tag)) * found)
    return found
