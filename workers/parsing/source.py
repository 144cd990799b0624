"""Text that comes in pieces, and what all parsers do with it: pass on words, find markers, read JSON values.

A parser is written as a generator that looks at a `Source` as if the text were all there, and yields None where it must
wait for more. It decides nothing that more text could change, so that the same comes out whatever the pieces are.
Knows nothing of any model's format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from ...jobs.strict import no_constant
from ..deltas import Delta

T = TypeVar("T")
Steps = Generator[Delta | None, None, T]
_NOTABLE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')


def content(words: str) -> Delta:
    """Words for the reader."""
    return Delta(content=words)


class Source:
    """What has come and is not read yet, and whether that is all."""

    def __init__(self) -> None:
        self.rest = ""
        self.ended = False

    def take(self, size: int) -> str:
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


class Reading:
    """A parser made of a generator: `read` is given the source, and yields deltas."""

    def __init__(self, read: Callable[[Source], Iterator[Delta | None]]) -> None:
        self._source = Source()
        self._steps = read(self._source)

    def feed(self, text: str) -> list[Delta]:
        self._source.rest += text
        return self._run()

    def close(self) -> list[Delta]:
        self._source.ended = True
        return self._run()

    def _run(self) -> list[Delta]:
        found = []
        for step in self._steps:
            if step is None:
                break
            found.append(step)
        return found


def words_until(
    source: Source, marker: str, *, trim: bool = False, tell: Callable[[str], Delta] = content
) -> Steps[str | None]:
    """Pass words on until the marker has been read; None at the end of the text.

    Returns the marker with the white space before it, which is not passed on. With `trim` white space at the beginning
    is dropped.
    """
    while True:
        place = source.rest.find(marker)
        size = _certain(source.rest, marker, source.ended) if place < 0 else len(source.rest[:place].rstrip())
        words = source.take(size)
        words = words.lstrip() if trim else words
        if words:
            trim = False
            yield tell(words)
        if place >= 0:
            return source.take(place - size + len(marker))
        if source.ended:
            return None
        yield None


def _certain(text: str, marker: str, ended: bool) -> int:
    """How much of the text is words whatever comes: neither the marker's beginning nor white space before it."""
    return len(text) if ended else len(text[: len(text) - _overlap(text, marker)].rstrip())


def _overlap(text: str, marker: str) -> int:
    """The length of the longest end of the text that is a beginning of the marker."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)


def needs(source: Source, size: int) -> Steps[bool]:
    """Wait until so many characters are there; False if the text ends before."""
    while len(source.rest) < size and not source.ended:
        yield None
    return len(source.rest) >= size


def blank_end(source: Source, start: int) -> Steps[int]:
    """Wait for something that is not white space; where it stands, or the end of the text."""
    while True:
        place = start + len(source.rest[start:]) - len(source.rest[start:].lstrip())
        if place < len(source.rest) or source.ended:
            return place
        yield None


def value_end(source: Source, start: int) -> Steps[int | None]:
    """Where the JSON object or array ends that begins at `start`; None if it does not."""
    if source.rest[start : start + 1] not in ("{", "["):
        return None
    place, depth, in_string = start, 0, False
    while True:
        found = (_STRING_END if in_string else _NOTABLE).search(source.rest, place)
        if found is None:
            place = len(source.rest)
        elif found[0] == "\\":
            if not (yield from needs(source, found.end() + 1)):
                return None
            place = found.end() + 1
        else:
            place = found.end()
            in_string ^= found[0] == '"'
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
            if depth == 0 and not in_string:
                return place
        if found is None:
            if source.ended:
                return None
            yield None


def place_of(source: Source, text: str, start: int) -> Steps[int | None]:
    """Where a text stands, looked for from `start` on; None if it does not come."""
    while True:
        place = source.rest.find(text, start)
        if place >= 0:
            return place
        if source.ended:
            return None
        start = max(start, len(source.rest) - len(text) + 1)
        yield None


def parsed(text: str) -> Any:
    """The JSON value that the text spells; None if it spells none."""
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return None
