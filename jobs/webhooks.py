"""Who is told when batches end: endpoints, with their events and secrets. `deliveries.py` tells them.

An endpoint belongs to a tenant and hears of that tenant's batches. Knows nothing of HTTP.

| key | what |
|---|---|
| `pressrun:{webhooks}:endpoints:{tenant}` | ids of a tenant's endpoints, in order of creation |
| `pressrun:{webhooks}:{id}` | an endpoint, or a delivery |
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import ids
from .backend import Backend
from .errors import NotFound, UserError
from .fields import as_text
from .invalid import whole_text
from .outbound import check_url
from .records import DEFAULT_TENANT, Page
from .redis_keys import SEQUENCE

EVENT_TYPES = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")
MAX_ENDPOINTS = 20
MAX_NAME = 256
OLD_SECRET_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A URL that hears of events. `old_secret` signs too, until `old_secret_until`."""

    id: str
    name: str
    url: str
    event_types: tuple[str, ...]
    secret: str
    created_at: int
    updated_at: int
    old_secret: str | None = None
    old_secret_until: int = 0
    tenant: str = DEFAULT_TENANT

    def signing_secrets(self, now: float) -> list[str]:
        """The secrets that sign now, the newest first."""
        return [self.secret] + ([self.old_secret] if self.old_secret and now < self.old_secret_until else [])


def key(object_id: str) -> str:
    """The key of an endpoint or a delivery. All keys of webhooks share a hash tag: scripts change several at once."""
    return f"pressrun:{{webhooks}}:{object_id}"


def create_endpoint(
    backend: Backend, *, name: str, url: str, event_types: Sequence[str], tenant: str = DEFAULT_TENANT
) -> Endpoint:
    """Have events of `event_types` posted to `url` from now on."""
    wanted = _checked(backend, name=name, url=url, event_types=event_types)
    if backend.redis.zcard(_list_key(tenant)) >= MAX_ENDPOINTS:
        raise UserError(f"There are {MAX_ENDPOINTS} webhook endpoints, the most there may be; delete one first.")
    now = int(time.time())
    endpoint = Endpoint(
        id=ids.new_id("whe_"),
        **wanted,
        secret=_new_secret(),
        created_at=now,
        updated_at=now,
        tenant=tenant,
    )
    place: Any = backend.redis.incr(SEQUENCE)
    pipe = backend.redis.pipeline(transaction=True)
    pipe.hset(key(endpoint.id), mapping=_fields(asdict(endpoint)))
    pipe.zadd(_list_key(tenant), {endpoint.id: place})
    pipe.execute()
    return endpoint


def find_endpoint(backend: Backend, endpoint_id: str, tenant: str = DEFAULT_TENANT) -> Endpoint:
    """A tenant's endpoint, or NotFound."""
    raw: dict[Any, Any] = backend.redis.hgetall(key(endpoint_id)) if endpoint_id.startswith("whe_") else {}
    endpoint = _endpoint(raw) if raw else None
    if endpoint is None or endpoint.tenant != tenant:
        raise _not_found(endpoint_id)
    return endpoint


def list_endpoints(
    backend: Backend, *, limit: int = 20, after: str | None = None, tenant: str = DEFAULT_TENANT
) -> Page[Endpoint]:
    """A tenant's endpoints, newest first, beyond the endpoint `after`."""
    found = backend.store.page(_list_key(tenant), limit + 1, True, after)
    pipe = backend.redis.pipeline(transaction=False)
    for endpoint_id in found[:limit]:
        pipe.hgetall(key(endpoint_id))
    return Page(items=[_endpoint(raw) for raw in pipe.execute() if raw], has_more=len(found) > limit)


def update_endpoint(
    backend: Backend, endpoint_id: str, changes: Mapping[str, Any], tenant: str = DEFAULT_TENANT
) -> Endpoint:
    """Change an endpoint's name, URL or event types; what is no change leaves it as it was."""
    endpoint = find_endpoint(backend, endpoint_id, tenant)
    new = replace(endpoint, **_checked(backend, **changes))
    return endpoint if new == endpoint else _edit(backend, new, *changes)


def rotate_secret(
    backend: Backend, endpoint_id: str, *, keep_old: bool = False, tenant: str = DEFAULT_TENANT
) -> Endpoint:
    """Give an endpoint a new secret; with `keep_old`, what it had signs beside it for a day."""
    endpoint, now = find_endpoint(backend, endpoint_id, tenant), int(time.time())
    new = replace(
        endpoint,
        secret=_new_secret(),
        old_secret=endpoint.secret,
        old_secret_until=now + OLD_SECRET_S if keep_old else 0,
    )
    return _edit(backend, new, "secret", "old_secret", "old_secret_until")


def delete_endpoint(backend: Backend, endpoint_id: str, tenant: str = DEFAULT_TENANT) -> None:
    """Forget an endpoint. What was still to be delivered to it is dropped when its turn comes."""
    find_endpoint(backend, endpoint_id, tenant)
    pipe = backend.redis.pipeline(transaction=True)
    pipe.zrem(_list_key(tenant), endpoint_id)
    pipe.delete(key(endpoint_id))
    pipe.execute()


def check_event_type(event_type: str, param: str) -> None:
    """One of `EVENT_TYPES`."""
    if event_type not in EVENT_TYPES:
        names = ", ".join(f"'{name}'" for name in EVENT_TYPES)
        message = f"Invalid value: '{event_type}'. Supported values are: {names}."
        raise UserError(message, param=param, code="invalid_value")


def _checked(backend: Backend, **values: Any) -> dict[str, Any]:
    """Those of an endpoint's fields that a client says, if they may be so."""
    checked = dict(values)
    if "name" in values:
        _check_name(values["name"])
    if "url" in values:
        check_url(values["url"], allow_private=backend.settings.webhook_allow_private)
    if "event_types" in values:
        for place, event_type in enumerate(values["event_types"]):
            check_event_type(event_type, f"event_types[{place}]")
        if not values["event_types"]:
            message = "Invalid value for 'event_types': name at least one."
            raise UserError(message, param="event_types", code="invalid_value")
        checked["event_types"] = tuple(dict.fromkeys(values["event_types"]))
    return checked


def _check_name(name: str) -> None:
    try:
        whole_text(name)
    except ValueError as error:
        raise UserError(f"Invalid value for 'name': {error}.", param="name", code="invalid_value") from error
    if not 0 < len(name) <= MAX_NAME:
        message = f"Invalid value for 'name': expected 1 to {MAX_NAME} characters."
        raise UserError(message, param="name", code="invalid_value")


def _edit(backend: Backend, endpoint: Endpoint, *changed: str) -> Endpoint:
    """Write some fields of an endpoint, unless it was deleted meanwhile."""
    endpoint = replace(endpoint, updated_at=int(time.time()))
    values = asdict(endpoint)
    pairs = _fields({name: values[name] for name in (*changed, "updated_at")}).items()
    args = [part for pair in pairs for part in pair]
    if not backend.store.scripts["edit"](keys=[key(endpoint.id)], args=args):
        raise _not_found(endpoint.id)
    return endpoint


def _fields(values: Mapping[str, Any]) -> dict[Any, Any]:
    return {
        name: json.dumps(value) if name == "event_types" else value
        for name, value in values.items()
        if value is not None
    }


def _endpoint(raw: Mapping[Any, Any]) -> Endpoint:
    fields: dict[str, Any] = {as_text(name): as_text(value) for name, value in raw.items()}
    for name in ("created_at", "updated_at", "old_secret_until"):
        fields[name] = int(fields[name])
    fields["event_types"] = tuple(json.loads(fields["event_types"]))
    return Endpoint(**fields)


def _list_key(tenant: str) -> str:
    return key(f"endpoints:{tenant}")


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _not_found(endpoint_id: str) -> NotFound:
    return NotFound(f"No such webhook endpoint: {endpoint_id}", param="id")
