"""API keys: made once, kept only as hashes, looked up by them.

A key is 256 random bits, so a plain SHA-256 keeps it: what makes passwords need a slow, salted hash is that they can be
guessed, and nobody tries 2^208 (what the hint leaves). A lookup compares hashes inside Redis, which tells nothing of a
key by the time it takes. A revoked key stays listed; that any was ever made is what closes an open server for good.

| key | what |
|---|---|
| `pressrun:keys` | a hash: the SHA-256 of every key, and what is known of it |

Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict, replace
from typing import Any

from .errors import NotFound, UserError
from .records import DEFAULT_TENANT, ApiKey
from .store import Store
from .tenants import check_name

KEYS = "pressrun:keys"
PREFIX = "sk-pressrun-"
NUM_BYTES = 32
HINT = len(PREFIX) + 8


class Keys:
    """The API keys of a deployment. Nothing is cached, so that a revoked key is refused from then on everywhere."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.redis = store.redis

    def create(
        self, *, tenant: str = DEFAULT_TENANT, name: str = "", expires_in_s: int | None = None
    ) -> tuple[str, ApiKey]:
        """A new key, to be shown now and never again, and what is kept of it."""
        secret, now = PREFIX + secrets.token_urlsafe(NUM_BYTES), int(time.time())
        digest = _digest(secret)
        key = ApiKey(
            id=f"key_{digest[:16]}",
            tenant=check_name(tenant),
            name=name,
            hint=secret[:HINT],
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        self._write(digest, key)
        return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """What is known of a key, be it good or not; None for one that was never made here."""
        raw: Any = self.redis.hget(KEYS, _digest(secret))
        return None if raw is None else ApiKey(**json.loads(raw))

    def any(self) -> bool:
        """Whether a key was ever made."""
        return bool(self.redis.exists(KEYS))

    def list(self) -> list[ApiKey]:
        """All keys, oldest first."""
        keys = [ApiKey(**json.loads(raw)) for raw in self.redis.hvals(KEYS)]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    def revoke(self, name: str) -> ApiKey:
        """Refuse a key from now on, named by its id or by its beginning; to do so again changes nothing."""
        found = [key for key in self.list() if key.id == name or (len(name) >= HINT and name.startswith(key.hint))]
        if not found:
            message = f"No API key has the id '{name}' or begins like that; `pressrun keys list` shows them."
            raise NotFound(message, param="key")
        if len(found) > 1:
            ids = ", ".join(key.id for key in found)
            raise UserError(f"More than one API key begins with '{name}': name one of {ids}.", param="key")
        (key,) = found
        if key.revoked_at is None:
            key = replace(key, revoked_at=int(time.time()))
            self._write(self._digest_of(key), key)
        return key

    def _digest_of(self, key: ApiKey) -> str:
        begin = key.id.removeprefix("key_").encode()
        digests: Any = self.redis.hkeys(KEYS)
        digest: bytes = next(digest for digest in digests if digest.startswith(begin))
        return digest.decode()

    def _write(self, digest: str, key: ApiKey) -> None:
        self.redis.hset(KEYS, digest, json.dumps(asdict(key)))
        self.store.make_durable()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
