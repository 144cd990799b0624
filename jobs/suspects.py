"""Which lines of a shard to try next, when every worker that took it came to nothing.

A line may kill the worker itself, before any engine sees it. A shard that was claimed several times in a row without
a finished line is tried in ever smaller portions from its first missing line on, until one line is alone. Whatever
portion gets through starts the count again. Knows nothing of stores or workers.
"""

from __future__ import annotations

NARROWINGS = 7  # From the most lines of a shard to one.


def suspect_from(max_attempts: int) -> int:
    """How many claims in vain make a shard one that is to be tried alone: that many are made with all of its lines."""
    return max(1, max_attempts - NARROWINGS)


def portion(num_missing: int, attempt: int, max_attempts: int) -> int:
    """How many of the missing lines to run in this attempt, counted from 1."""
    return max(1, num_missing >> max(0, attempt - suspect_from(max_attempts)))
