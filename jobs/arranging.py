"""Lines of a batch in an order that brings prompts together which begin alike, if that is worth it.

What prompts share is computed once while they run close to each other. Where lines that share more than a few hundred
bytes lie too far apart in the file, the batch is run from a copy of it in which they follow each other; every line of
the copy carries its place in the file, and the results go back into that order. Prompts are compared by hashes of their
first 512, 1024, … bytes, before any template or tokenizer sees them. Knows nothing of models or shards.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, Protocol

from .lines import label, split_label, split_lines

log = logging.getLogger(__name__)

# So many bytes from the beginning are compared, in steps that double.
BOUNDARIES = tuple(512 << i for i in range(8))
HASH_BYTES = 8
# Prompts within so many bytes are run together whatever the order: a worker has more than that in hand.
WINDOW_BYTES = 1 << 20
# Of the prompts' bytes, so much more must be shared for a copy of the file to be worth it.
MIN_GAIN = 0.1
# A batch of more lines is run in its own order: keys are held in memory.
MAX_LINES = 200_000


class OpenBlob(Protocol):
    """The bytes of a blob from an offset on, in chunks."""

    def __call__(self, key: str, offset: int = 0, size: int | None = None) -> Iterable[bytes]: ...


class Beginnings:
    """Takes in the lines of a file one after another; `order` says in which they should run."""

    def __init__(self) -> None:
        self._too_many = False
        self._forget()

    def _forget(self) -> None:
        self._keys: list[bytes] = []
        # The prompts' bytes up to each line's end.
        self._ends = array("Q")

    def add(self, body: dict[str, Any]) -> None:
        """The request in the next line."""
        if self._too_many or len(self._keys) == MAX_LINES:
            self._too_many = True
            self._forget()
            return
        text = prompt_bytes(body)
        self._keys.append(_key(text))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(text))

    def order(self) -> list[int] | None:
        """The lines' places in the file, in the order in which to run them; None where the file's own is as good."""
        keys, ends = self._keys, self._ends
        if not keys or ends[-1] <= WINDOW_BYTES:
            return None
        order = sorted(range(len(keys)), key=keys.__getitem__)
        in_file, arranged = [0] * len(keys), 0
        for level, boundary in enumerate(BOUNDARIES):
            for run in _runs(order, keys, (level + 1) * HASH_BYTES):
                arranged += (len(run) - 1) * (boundary - (BOUNDARIES[level - 1] if level else 0))
                run.sort()
                for before, after in pairwise(run):
                    if ends[after] - ends[before] <= WINDOW_BYTES:
                        in_file[after] = boundary
        return order if arranged - sum(in_file) >= MIN_GAIN * ends[-1] else None


class Layout:
    """Where each line lies in a file; blank ones are none."""

    def __init__(self, chunks: Iterable[bytes], *, longest: int) -> None:
        self.offsets, self.sizes = array("Q"), array("L")
        for offset, raw in split_lines(chunks, longest=longest):
            if raw.strip():
                self.offsets.append(offset)
                self.sizes.append(len(raw))

    def line_size(self, index: int) -> int:
        """The bytes of a line in the copy."""
        return len(label(index)) + self.sizes[index] + 1


def prompt_bytes(body: dict[str, Any]) -> bytes:
    """What a request begins with, as far as it can be told from its body; nothing for what is not understood."""
    messages, items = body.get("messages"), body.get("input")
    if isinstance(items, str) and "instructions" in body:
        items = [{"content": items}]
    if isinstance(items, list) and items and isinstance(items[0], dict):  # Of a response; else it is like a prompt.
        messages = [{"content": body.get("instructions")}, *items]
    if isinstance(messages, list):
        return b"\0".join(_text(message.get("content")) for message in messages if isinstance(message, dict))
    prompt = body.get("input") if body.get("prompt") is None else body["prompt"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    return _text(prompt)


def arranged_copy(chunks: Iterable[bytes], layout: Layout, order: Iterable[int], scratch: Path) -> Iterator[bytes]:
    """The file's lines in another order, each behind its place in the file.

    Passes the file through a temporary one in the folder `scratch`; OSError where that has no room.
    """
    with tempfile.TemporaryFile(dir=scratch) as copy:
        for chunk in chunks:
            copy.write(chunk)
        copy.flush()
        for index in order:
            copy.seek(layout.offsets[index])
            yield label(index) + copy.read(layout.sizes[index]) + b"\n"


def in_file_order(keys: list[str], open_blob: OpenBlob, scratch: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of segments, which carry their places, in the order of those: (place, line with its newline).

    Passes them through a temporary file in the folder `scratch`, or, where that has no room, reads each line once more
    from its segment. What is held in memory is four numbers a line.
    """
    indices, segments, offsets, sizes = array("I"), array("I"), array("Q"), array("Q")
    # Without a buffer, what found no room is not tried again behind our back.
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as copy:
        has_room = True
        for segment, key in enumerate(keys):
            for offset, raw in split_lines(open_blob(key), longest=sys.maxsize):
                index, line = split_label(raw)
                indices.append(index)
                segments.append(segment)
                sizes.append(len(line) + 1)
                offsets.append(offset + len(raw) - len(line))
                has_room = has_room and _write(copy, line + b"\n")
        order = _by_index(indices)
        if not has_room:
            for place in order:
                yield indices[place], b"".join(open_blob(keys[segments[place]], offsets[place], sizes[place]))
            return
        starts = array("Q", accumulate(sizes, initial=0))
        for place in order:
            copy.seek(starts[place])
            yield indices[place], copy.read(sizes[place])


def _by_index(indices: array[int]) -> Iterator[int]:
    """The places of different numbers in the order of these, in four bytes for each number up to the largest."""
    places = array("I", bytes(array("I").itemsize * (max(indices, default=-1) + 1)))
    for place, index in enumerate(indices, start=1):
        places[index] = place
    return (place - 1 for place in places if place)


def _write(file: IO[bytes], data: bytes) -> bool:
    """Whether there was room for it."""
    try:
        if file.write(data) == len(data):
            return True
        reason = "no space left"
    except OSError as error:
        reason = str(error)
    log.warning("results are put in order without a temporary file: %s", reason)
    return False


def _text(content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode(errors="surrogatepass")
    if isinstance(content, list):
        return b" ".join(_text(part.get("text")) if isinstance(part, dict) else b"%r" % part for part in content)
    return b""


def _key(text: bytes) -> bytes:
    """A hash of the text up to each boundary that it reaches, one behind the other."""
    digest, key, start = hashlib.blake2b(digest_size=HASH_BYTES), b"", 0
    for boundary in BOUNDARIES:
        if len(text) < boundary:
            break
        digest.update(text[start:boundary])
        key += digest.digest()
        start = boundary
    return key


def _runs(order: list[int], keys: list[bytes], length: int) -> Iterator[list[int]]:
    """Lines whose keys agree in their first bytes, where more than one does."""
    run: list[int] = []
    for index in order:
        if run and keys[index][:length] == keys[run[-1]][:length] and len(keys[index]) >= length:
            run.append(index)
            continue
        if len(run) > 1:
            yield run
        run = [index] if len(keys[index]) >= length else []
    if len(run) > 1:
        yield run
