"""Lines of a batch that are bound to get the same answer: how they are known, and which of a file's lines they are.

At temperature 0, or with a seed, nothing is left to chance. Of requests that were read in full `digest_of` says which
mean the same; workers ask it. Of bodies as they were sent `spelling_of` says, for a small part of the cost, which are
spelled the same; validation asks it of every line. What is spelled the same means the same, as far as what the model
does with what is left out is known. Knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .embeddings import EmbeddingRequest
from .generation import NEUTRAL
from .json_text import written
from .labels import LABELS
from .records import EMBEDDINGS, RESPONSES, Shard
from .requests import BODIES, ChatCompletionRequest, CompletionRequest

# In a file of more lines twins are not looked for: of each line that is bound 12 bytes are held in memory.
MOST_LINES = 1_000_000
NUM_HEAPS = 64
_USUAL: Mapping[str, Mapping[str, Any]] = {
    url: {name: field.default for name, field in body.model_fields.items() if not field.is_required()}
    for url, body in BODIES.items()
}
_NOTHING = object()


def is_bound(temperature: object, seed: object) -> bool:
    """Whether a request's answer is left to no chance."""
    return temperature == 0 or seed is not None


def digest_of(
    url: str, body: ChatCompletionRequest | CompletionRequest | EmbeddingRequest, *, shown: object = None
) -> bytes | None:
    """The same for requests that mean the same, however they are written; None where chance has a say.

    `shown` is what the answer repeats of the request as it was written.
    """
    if not isinstance(body, EmbeddingRequest) and not is_bound(body.temperature, body.seed):
        return None
    # By pydantic, for a third of what Python's own JSON costs. No line of it holds a newline.
    canonical = "\n".join((url, body.model_dump_json(exclude=LABELS), json.dumps(shown)))
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def spelling_of(url: str, body: dict[str, Any], sampling: Mapping[str, float] = NEUTRAL) -> int | None:
    """Eight bytes that are the same for bodies that differ at most in the order of their fields, in labels, and in
    fields that say what goes without saying, of `sampling` with this model; None where chance has a say.
    """
    temperature = body.get("temperature")
    if temperature is None:
        temperature = sampling["temperature"]
    if url != EMBEDDINGS and not is_bound(temperature, body.get("seed")):
        return None
    given = {name: body[name] for name in sorted(body)}
    if url != RESPONSES:  # Whose answers repeat all that they were asked with.
        usual = _USUAL[url]
        given = {
            name: value
            for name, value in given.items()
            if value is not None and name not in LABELS and value != sampling.get(name, usual.get(name, _NOTHING))
        }
        if temperature == 0:
            given["temperature"] = 0  # However it was written.
    return int.from_bytes(hashlib.blake2b(written(given), digest_size=8).digest(), "little")


class Spellings:
    """Takes in how a file's lines are spelled, in small heaps, so that they can be counted one after another."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._digests = [array("Q") for _ in range(NUM_HEAPS)]
        self._lines = [array("I") for _ in range(NUM_HEAPS)]

    def add(self, line: int, spelling: int | None) -> None:
        """The next line, given by its place among the lines, and its spelling if it is bound."""
        if line == MOST_LINES:
            self._forget()
        if spelling is None or line >= MOST_LINES:
            return
        self._digests[spelling % NUM_HEAPS].append(spelling)
        self._lines[spelling % NUM_HEAPS].append(line)

    def groups(self) -> Iterator[list[int]]:
        """Lines that are spelled the same, where more than one is, in the order of the file."""
        for digests, lines in zip(self._digests, self._lines, strict=True):
            groups = {digest: list[int]() for digest, count in Counter(digests).items() if count > 1}
            for digest, line in zip(digests, lines, strict=True) if groups else ():
                if digest in groups:
                    groups[digest].append(line)
            yield from groups.values()


class Twins:
    """Which of so many lines are twins, as a chain from each to the next."""

    def __init__(self, groups: Iterable[Sequence[int]], num_lines: int) -> None:
        self._next = array("I", bytes(num_lines * array("I").itemsize))  # 0, as the first line is nobody's next.
        self._is_later = bytearray(num_lines)
        for group in groups:
            for line, after in pairwise(group):
                self._next[line] = after
                self._is_later[after] = True

    def is_later(self, line: int) -> bool:
        """Whether it has a twin before it."""
        return bool(self._is_later[line])

    def num_apart(self, shards: Iterable[Shard]) -> int:
        """How many of the lines lie in another shard than the twin before them."""
        ends = ((shard.first_line, shard.first_line + shard.num_lines) for shard in shards)
        return sum(self._next[line] >= end for first, end in ends for line in range(first, end))

    def together(self, order: Iterable[int]) -> array[int]:
        """The same lines, each followed by all of its twins."""
        found = array("I")
        for line in order:
            if self._is_later[line]:
                continue
            found.append(line)
            while line := self._next[line]:
                found.append(line)
        return found
