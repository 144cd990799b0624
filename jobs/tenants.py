"""Tenants: what each may hold and how much of the engines is its part.

A tenant needs no creation: any name that an API key is made for is one, without limits and with weight 1 until they
are set. Every limit is a field of its own, so that two who set different ones do not undo each other.

| key | what |
|---|---|
| `pressrun:tenants` | a hash: `{limit}:{tenant}` → number |
| `pressrun:requests:{tenant}` | the tenant's bucket of requests (`lua/request.lua`) |

Knows nothing of who asks, and of batches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from redis import Redis

from .connection import Scripts
from .errors import UserError
from .records import Tenant

TENANTS = "pressrun:tenants"
LIMITS = tuple(field.name for field in fields(Tenant) if field.name != "name")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What is left of a tenant's requests. `wait_s` is how long until there is one again, `full_s` until all are."""

    limit: int
    left: int
    wait_s: float
    full_s: float
    granted: bool


class Tenants:
    """The limits of all tenants. Thread-safe; every method is one round trip."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self.redis = redis
        self.scripts = scripts

    def get(self, name: str) -> Tenant:
        """A tenant's limits; those of one of whom nothing was set are the defaults."""
        values: list[Any] = self.redis.hmget(TENANTS, [limit_field(limit, name) for limit in LIMITS])
        return _tenant(name, zip(LIMITS, values, strict=True))

    def list(self) -> list[Tenant]:
        """All tenants of whom something was set, by name."""
        found: dict[str, list[tuple[str, Any]]] = {}
        everything: dict[Any, Any] = self.redis.hgetall(TENANTS)
        for raw, value in everything.items():
            limit, _, name = raw.decode().partition(":")
            found.setdefault(name, []).append((limit, value))
        return [_tenant(name, values) for name, values in sorted(found.items())]

    def weights(self) -> dict[str, float]:
        """The weights of the tenants of whom something was set; all others weigh 1."""
        return {tenant.name: tenant.weight for tenant in self.list()}

    def set(self, name: str, **limits: float | None) -> Tenant:
        """Set these limits and leave the others; None takes one away."""
        check_name(name)
        for limit, value in limits.items():
            _check_limit(limit, value)
        pipe = self.redis.pipeline()
        for limit, value in limits.items():
            if value is None:
                pipe.hdel(TENANTS, limit_field(limit, name))
            else:
                pipe.hset(TENANTS, limit_field(limit, name), repr(value))
        pipe.execute()
        return self.get(name)

    def spend_request(self, name: str) -> Allowance | None:
        """Take one request out of the tenant's bucket, if there is one; None where its requests are not limited."""
        return _allowance(self._spend(name))

    def spend_request_unless(self, key: str, name: str) -> tuple[bool, Allowance | None]:
        """The same unless there is `key` in Redis: whether there was none, and what is left then."""
        reply = self._spend(name, key)
        return (False, None) if reply == b"there" else (True, _allowance(reply))

    def _spend(self, name: str, *keys: str) -> Any:
        limit = limit_field("requests_per_minute", name)
        return self.scripts["request"](keys=[TENANTS, f"pressrun:requests:{name}", *keys], args=[limit])


def limit_field(limit: str, name: str) -> str:
    """Where a tenant's limit stands in `TENANTS`."""
    return f"{limit}:{name}"


def check_name(name: str) -> str:
    """The name, if it can be a tenant's."""
    if not _NAME.fullmatch(name):
        message = f"'{name}' cannot be a tenant's name: at most 63 of a-z, 0-9, '.', '_' and '-', the first no sign."
        raise UserError(message, param="tenant", code="invalid_value")
    return name


def _allowance(reply: Any) -> Allowance | None:
    if reply is None:
        return None
    granted, limit, left, wait, full = (float(part) for part in reply)
    return Allowance(granted=bool(granted), limit=int(limit), left=int(left), wait_s=wait, full_s=full)


def _check_limit(limit: str, value: float | None) -> None:
    assert limit in LIMITS
    if value is None:
        return
    if limit == "weight" and not 0 < value <= 1_000_000:
        raise UserError("A weight lies above 0 and is at most 1000000.", param=limit, code="invalid_value")
    if limit != "weight" and not 1 <= value <= 2**53:
        raise UserError(f"{limit} is at least 1.", param=limit, code="invalid_value")


def _tenant(name: str, values: Iterable[tuple[str, Any]]) -> Tenant:
    given = {limit: float(raw) if limit == "weight" else int(raw) for limit, raw in values if raw is not None}
    return Tenant(name=name, **given)  # type: ignore[arg-type]
