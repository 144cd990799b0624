"""Fixed workloads: the same token ids and output lengths for every engine that is measured, on any machine.

Prompts are random token ids from a seeded generator, outputs have fixed lengths, so that all engines do the same work.
Knows nothing of engines. The order in which the generator is asked is part of a workload: a change there changes all
that was measured before (tests/bench/test_workloads.py holds their checksums).
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

SEED = 20261123
# Token ids below are special in many vocabularies; none above is drawn, so that large vocabularies draw the same.
LOWEST_TOKEN, HIGHEST_TOKEN = 100, 100_000
NUM_HEADS, NUM_DOCUMENTS = 16, 128


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt's token ids and how many tokens to generate."""

    prompt: list[int]
    num_output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`num_heads` different beginnings of `num_shared` tokens each are shared among the prompts."""

    name: str
    items: list[Item]
    num_heads: int = 1
    num_shared: int = 0

    @property
    def num_input(self) -> int:
        return sum(len(item.prompt) for item in self.items)

    @property
    def num_output(self) -> int:
        return sum(item.num_output for item in self.items)

    @property
    def checksum(self) -> str:
        """Of all token ids and lengths, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(array("q", [len(item.prompt), item.num_output, *item.prompt]).tobytes())
        return digest.hexdigest()


class Draws:
    """The generator that a workload is drawn from."""

    def __init__(self, vocab_size: int) -> None:
        self.random = random.Random(SEED)
        self._end = min(vocab_size, HIGHEST_TOKEN)

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(LOWEST_TOKEN, self._end) for _ in range(count)]

    def length(self, mu: float, sigma: float) -> int:
        """Log-normal, at least 4 and at most 1024."""
        return int(min(max(self.random.lognormvariate(mu, sigma), 4), 1024))


def uniform(draws: Draws, count: int) -> list[Item]:
    """A long batch of equal work."""
    return [Item(draws.tokens(512), 256) for _ in range(count)]


def sharegpt(draws: Draws, count: int) -> list[Item]:
    """Lengths like those of ShareGPT's conversations: about 200 in and out, with long tails."""
    return [Item(draws.tokens(draws.length(4.7, 1.2)), draws.length(4.8, 1.0)) for _ in range(count)]


def prefix(draws: Draws, count: int) -> list[Item]:
    """One long instruction and many short items: the usual job over a dataset."""
    head = draws.tokens(1024)
    return [Item(head + draws.tokens(128), 128) for _ in range(count)]


def prefixes(draws: Draws, count: int, num_heads: int = NUM_HEADS) -> list[Item]:
    """Several long instructions, one after another, each with its items."""
    heads = [draws.tokens(1024) for _ in range(num_heads)]
    return [Item(heads[i * num_heads // count] + draws.tokens(128), 128) for i in range(count)]


def shuffled(draws: Draws, count: int, num_heads: int = NUM_HEADS) -> list[Item]:
    """The same items in random order: what it is worth to bring those together that begin alike."""
    items = prefixes(draws, count, num_heads)
    draws.random.shuffle(items)
    return items


def prefill(draws: Draws, count: int) -> list[Item]:
    """Classify or extract: long in, very short out."""
    return [Item(draws.tokens(2048), 8) for _ in range(count)]


def mixed(draws: Draws, count: int) -> list[Item]:
    """The lengths of nano-vllm's published benchmark."""
    randint = draws.random.randint
    return [Item(draws.tokens(randint(100, 1024)), randint(100, 1024)) for _ in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a workload is drawn, how many requests it has, and what they share."""

    draw: Callable[[Draws, int], list[Item]]
    num_requests: int
    num_heads: int = 1
    num_shared: int = 0


WORKLOADS: dict[str, Recipe] = {
    "uniform": Recipe(draw=uniform, num_requests=1024),
    "sharegpt": Recipe(draw=sharegpt, num_requests=2000),
    "prefix": Recipe(draw=prefix, num_requests=1024, num_shared=1024),
    "prefixes": Recipe(draw=prefixes, num_requests=1024, num_heads=NUM_HEADS, num_shared=1024),
    "shuffled": Recipe(draw=shuffled, num_requests=1024, num_heads=NUM_HEADS, num_shared=1024),
    # Documents, and eight questions about each: more than a cache holds.
    "documents": Recipe(
        draw=partial(prefixes, num_heads=NUM_DOCUMENTS), num_requests=1024, num_heads=NUM_DOCUMENTS, num_shared=1024
    ),
    "scattered": Recipe(
        draw=partial(shuffled, num_heads=NUM_DOCUMENTS), num_requests=1024, num_heads=NUM_DOCUMENTS, num_shared=1024
    ),
    "prefill": Recipe(draw=prefill, num_requests=512),
    "mixed": Recipe(draw=mixed, num_requests=256),
}


def make_workload(name: str, vocab_size: int, num_requests: int | None = None) -> Workload:
    """`num_requests` None takes the workload's own number."""
    recipe = WORKLOADS[name]
    count = num_requests or recipe.num_requests
    items = recipe.draw(Draws(vocab_size), count)
    return Workload(name=name, items=items, num_heads=min(count, recipe.num_heads), num_shared=recipe.num_shared)
