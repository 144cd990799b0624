"""New ids, in the shapes that OpenAI clients know."""

from __future__ import annotations

import os
import random
import secrets

_passing = random.Random(secrets.randbits(256))
# A forked child must not repeat its parent's.
os.register_at_fork(after_in_child=lambda: _passing.seed(secrets.randbits(256)))


def new_id(prefix: str) -> str:
    """A random id such as `batch_4f…`: 120 bits, so ids can be neither guessed nor repeated."""
    return f"{prefix}{secrets.token_hex(15)}"


def passing_id(prefix: str) -> str:
    """An id that nobody can look anything up by, such as a line's `batch_req_…`: never repeated, but not secret.

    A tenth of the cost of `new_id`, which asks the system every time; a worker makes three of them a line.
    """
    return f"{prefix}{_passing.getrandbits(120):030x}"


def file_id() -> str:
    return new_id("file-")


def batch_id() -> str:
    return new_id("batch_")


def job_id() -> str:
    return new_id("job_")


def owner_id() -> str:
    """Names one claim of one shard; a commit that carries a stale one is refused."""
    return new_id("own_")
