"""New ids, in the shapes that OpenAI clients know."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A random id such as `batch_4f…`: 120 bits, so ids can be neither guessed nor repeated."""
    return f"{prefix}{secrets.token_hex(15)}"


def file_id() -> str:
    return new_id("file-")


def batch_id() -> str:
    return new_id("batch_")


def job_id() -> str:
    return new_id("job_")


def owner_id() -> str:
    """Names one claim of one shard; a commit that carries a stale one is refused."""
    return new_id("own_")
