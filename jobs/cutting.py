"""Cutting the lines of a copy, in which twins follow each other, into shards that leave twins together.

A worker runs the twins of one shard once, so a group of them is divided only where it is too large to be held: up to
`MAX_TWINS` of them may be a shard, however few other lines may, because a twin costs no more than to be stored. Knows
nothing of what makes a twin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .records import Shard

MAX_SHARD_BYTES = 4 * 2**20
# Of their answers all lie in Redis until the shard is sealed. Each further shard of a group costs a run more.
MAX_TWINS = 1000


def cut(lines: Iterable[tuple[int, bool]], shard_lines: int) -> tuple[Shard, ...]:
    """Shards of lines that lie one behind the other, given by their sizes and whether each is the twin of the one
    before it: of at most `shard_lines` lines, or of one group of twins alone.
    """
    shards, first, offset = list[Shard](), 0, 0
    for sizes in _stretches(_groups(lines), shard_lines):
        size = sum(sizes)
        shards.append(Shard(index=len(shards), first_line=first, num_lines=len(sizes), offset=offset, size=size))
        first, offset = first + len(sizes), offset + size
    return tuple(shards)


def _groups(lines: Iterable[tuple[int, bool]]) -> Iterator[list[int]]:
    """The sizes of lines that are twins."""
    group: list[int] = []
    for size, is_twin in lines:
        if group and not is_twin:
            yield group
            group = []
        group.append(size)
    if group:
        yield group


def _stretches(groups: Iterable[list[int]], shard_lines: int) -> Iterator[list[int]]:
    """The sizes of the lines of each shard."""
    held, num_bytes = list[int](), 0
    for group in groups:
        size = sum(group)
        if held and (len(held) + len(group) > shard_lines or num_bytes + size > MAX_SHARD_BYTES):
            yield held
            held, num_bytes = [], 0
        if len(group) > shard_lines or size > MAX_SHARD_BYTES:
            yield from _portions(group, max(shard_lines, MAX_TWINS))
        else:
            held, num_bytes = held + group, num_bytes + size
    if held:
        yield held


def _portions(group: list[int], most: int) -> Iterator[list[int]]:
    """A group that no shard can hold beside others, in as few parts as may be."""
    part, num_bytes = list[int](), 0
    for size in group:
        if part and (len(part) == most or num_bytes + size > MAX_SHARD_BYTES):
            yield part
            part, num_bytes = [], 0
        part.append(size)
        num_bytes += size
    yield part
