"""Events on their way to endpoints: put in line, taken, settled, and remembered in a log.

A batch's event is written by the script that ends the batch (`event_id`). Before anybody forgets the batch it is put in
line for every endpoint that wants it (`announce`). Who takes a delivery has it for `TAKEN_S`; what a dead process took
is taken again then. Knows nothing of how an event is posted (`posting.py`).

| key | what |
|---|---|
| `pressrun:{webhooks}:due` | delivery ids by when they are to be tried |
| `pressrun:{webhooks}:log:{endpoint id}` | an endpoint's deliveries in order |
| `pressrun:{webhooks}:sequence` | what the order is counted with |
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .backend import Backend
from .fields import as_text
from .records import DEFAULT_TENANT, Batch, Page
from .webhooks import MAX_ENDPOINTS, Endpoint, find_endpoint, key, list_endpoints

DeliveryStatus = Literal["pending", "delivered", "failed"]
DUE = key("due")
TAKEN_S = 120.0
KEPT_S = 30 * 86400
MOST_IN_LOG = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One POST: the status that came back, or why none did."""

    at: int
    status_code: int | None = None
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event on its way to one endpoint. `body` is what is posted, the same every time."""

    id: str
    event_id: str
    event_type: str
    endpoint_id: str
    batch_id: str
    tenant: str
    created_at: int
    body: str
    status: DeliveryStatus = "pending"
    next_attempt_at: int | None = None
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A delivery that is this process's to try until `until`."""

    delivery: Delivery
    until: float


def announce(backend: Backend, batch: Batch) -> None:
    """Put an ended batch's event in line for its tenant's endpoints. May be done twice."""
    if batch.event_id is None:
        return  # It was ended by a version that told nobody.
    event_type = f"batch.{batch.status}"
    ended_at = batch.times[f"{batch.status}_at"]
    for endpoint in list_endpoints(backend, limit=2 * MAX_ENDPOINTS, tenant=batch.tenant).items:
        if event_type in endpoint.event_types:
            _put_in_line(backend, endpoint, event_body(batch.event_id, event_type, ended_at, batch.id), batch.id)


def take(backend: Backend, most: int, now: float) -> list[Taken]:
    """Deliveries whose time has come, at most so many."""
    until = now + TAKEN_S
    taken = [as_text(raw) for raw in backend.store.scripts["take"](keys=[DUE], args=[now, repr(until), most])]
    found = _read(backend, taken)
    for delivery_id in taken:
        if delivery_id not in found:
            backend.redis.zrem(DUE, delivery_id)  # Too old to be remembered.
    return [Taken(delivery=found[one], until=until) for one in taken if one in found]


def deliveries_of(
    backend: Backend,
    endpoint_id: str,
    *,
    limit: int = 20,
    after: str | None = None,
    tenant: str = DEFAULT_TENANT,
) -> Page[Delivery]:
    """What was sent, or is to be sent, to an endpoint, newest first, beyond the delivery `after`."""
    find_endpoint(backend, endpoint_id, tenant)
    logged = backend.store.page(_log_key(endpoint_id), limit + 1, True, after)
    found = _read(backend, logged[:limit])
    return Page(items=list(found.values()), has_more=len(logged) > limit)


def put_back(backend: Backend, taken: Taken, at: int) -> None:
    """Let a delivery that was taken wait until `at`, as if it had not been."""
    settle(backend, taken, replace(taken.delivery, next_attempt_at=at))


def event_body(event_id: str, event_type: str, created_at: int, batch_id: str) -> str:
    """The event as it is posted."""
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created_at": created_at,
        "data": {"id": batch_id},
    }
    return json.dumps(event, separators=(",", ":"))


def _put_in_line(backend: Backend, endpoint: Endpoint, body: str, batch_id: str) -> None:
    event = json.loads(body)
    now = int(time.time())
    # The same for the same event and endpoint, so that it is put in line once.
    delivery_id = "whd_" + hashlib.sha256(f"{event['id']}.{endpoint.id}".encode()).hexdigest()[:30]
    fields = {
        "id": delivery_id,
        "event_id": event["id"],
        "event_type": event["type"],
        "endpoint_id": endpoint.id,
        "batch_id": batch_id,
        "tenant": endpoint.tenant,
        "created_at": now,
        "body": body,
        "status": "pending",
        "next_attempt_at": now,
        "attempts": "[]",
    }
    pairs = [part for pair in fields.items() for part in pair]
    keys = [key(delivery_id), DUE, _log_key(endpoint.id), key("sequence")]
    backend.store.scripts["announce"](keys=keys, args=[delivery_id, now, KEPT_S, MOST_IN_LOG, *pairs])


def settle(backend: Backend, taken: Taken, delivery: Delivery) -> None:
    """Write down what came of an attempt, unless somebody else has taken the delivery since."""
    again = "" if delivery.next_attempt_at is None or delivery.status != "pending" else delivery.next_attempt_at
    attempts = [{"at": one.at, "status_code": one.status_code, "error": one.error} for one in delivery.attempts]
    fields = {"status": delivery.status, "next_attempt_at": again, "attempts": json.dumps(attempts)}
    pairs = [part for pair in fields.items() for part in pair]
    args = [delivery.id, repr(taken.until), again, *pairs]
    backend.store.scripts["settle"](keys=[key(delivery.id), DUE], args=args)


def _read(backend: Backend, delivery_ids: list[str]) -> dict[str, Delivery]:
    pipe = backend.redis.pipeline(transaction=False)
    for delivery_id in delivery_ids:
        pipe.hgetall(key(delivery_id))
    return {one: _delivery(raw) for one, raw in zip(delivery_ids, pipe.execute(), strict=True) if raw}


def _delivery(raw: Mapping[Any, Any]) -> Delivery:
    fields: dict[str, Any] = {as_text(name): as_text(value) for name, value in raw.items()}
    fields["created_at"] = int(fields["created_at"])
    fields["next_attempt_at"] = int(fields["next_attempt_at"]) if fields["next_attempt_at"] else None
    fields["attempts"] = tuple(Attempt(**one) for one in json.loads(fields["attempts"]))
    return Delivery(**fields)


def _log_key(endpoint_id: str) -> str:
    return key(f"log:{endpoint_id}")
