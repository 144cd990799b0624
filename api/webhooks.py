"""`/v1/webhook_endpoints`: who is told when batches end, and what was sent. The rules are `jobs/webhooks.py`'s."""

from __future__ import annotations

from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ..jobs import deliveries, posting, webhooks
from .deps import BackendDep
from .schemas import ListOf
from .webhook_schemas import (
    DeliveryObject,
    EndpointDeleted,
    EndpointObject,
    EndpointTested,
    EndpointWithSecret,
    EventTypes,
)

router = APIRouter(prefix="/v1", tags=["webhooks"])
NUM_TEST_THREADS = 4
EVENT_TYPES = "Any of " + ", ".join(f"`{name}`" for name in webhooks.EVENT_TYPES) + "."


class EndpointCreate(BaseModel):
    """A new endpoint."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="What people call it.")
    url: str = Field(description="Where events are posted to: https or http, at a public address.")
    event_types: list[str] = Field(max_length=100, description=EVENT_TYPES)


class EndpointUpdate(BaseModel):
    """What is to change of an endpoint."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", description="What people call it.")
    url: str = Field("", description="Where events are posted to.")
    event_types: list[str] = Field([], max_length=100, description=EVENT_TYPES)


class SecretRotation(BaseModel):
    """How an endpoint gets a new secret."""

    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: bool = Field(
        False, strict=True, description="Sign with the secret that it had, too, for a day."
    )


class TestEvent(BaseModel):
    """Which event to make up."""

    model_config = ConfigDict(extra="forbid")

    event_type: str = Field(description=EVENT_TYPES)


class WebhookQuery(BaseModel):
    """How many to list, and where to go on."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="The id of the last one of the page before.")


@router.post("/webhook_endpoints")
def create_endpoint(body: EndpointCreate, backend: BackendDep) -> EndpointWithSecret:
    """Have events posted to a URL. The answer holds the secret that signs them; it is not shown again."""
    endpoint = webhooks.create_endpoint(backend, name=body.name, url=body.url, event_types=body.event_types)
    return EndpointWithSecret.showing(endpoint)


@router.get("/webhook_endpoints")
def list_endpoints(query: Annotated[WebhookQuery, Query()], backend: BackendDep) -> ListOf[EndpointObject]:
    """Webhook endpoints, newest first."""
    page = webhooks.list_endpoints(backend, limit=query.limit, after=query.after)
    return ListOf.of([EndpointObject.of(endpoint) for endpoint in page.items], page.has_more)


@router.get("/webhook_endpoints/{endpoint_id}")
def retrieve_endpoint(endpoint_id: str, backend: BackendDep) -> EndpointObject:
    """A webhook endpoint."""
    return EndpointObject.of(webhooks.find_endpoint(backend, endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}")
def update_endpoint(endpoint_id: str, body: EndpointUpdate, backend: BackendDep) -> EndpointObject:
    """Change a webhook endpoint's name, URL or event types."""
    changes = body.model_dump(include=body.model_fields_set)
    return EndpointObject.of(webhooks.update_endpoint(backend, endpoint_id, changes))


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete_endpoint(endpoint_id: str, backend: BackendDep) -> EndpointDeleted:
    """Delete a webhook endpoint; what is still on its way to it is dropped."""
    webhooks.delete_endpoint(backend, endpoint_id)
    return EndpointDeleted(id=endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    endpoint_id: str, backend: BackendDep, body: Annotated[SecretRotation | None, Body()] = None
) -> EndpointWithSecret:
    """Give a webhook endpoint a new secret."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return EndpointWithSecret.showing(webhooks.rotate_secret(backend, endpoint_id, keep_old=keep_old))


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def test_endpoint(endpoint_id: str, body: TestEvent, request: Request, backend: BackendDep) -> EndpointTested:
    """Post a made-up event to a webhook endpoint, and say which status came back."""
    threads = request.app.state.test_threads
    status = await to_thread.run_sync(posting.send_test, backend, endpoint_id, body.event_type, limiter=threads)
    return EndpointTested(event_type=body.event_type, status_code=status, webhook_endpoint_id=endpoint_id)


def test_threads() -> CapacityLimiter:
    """How many endpoints may be tested at a time: one that takes its time must not hold up other calls."""
    return CapacityLimiter(NUM_TEST_THREADS)


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_deliveries(
    endpoint_id: str, query: Annotated[WebhookQuery, Query()], backend: BackendDep
) -> ListOf[DeliveryObject]:
    """What was posted to a webhook endpoint in the last 30 days, or is to be, with every attempt; newest first."""
    page = deliveries.deliveries_of(backend, endpoint_id, limit=query.limit, after=query.after)
    return ListOf.of([DeliveryObject.of(delivery) for delivery in page.items], page.has_more)


@router.get("/webhook_event_types")
def list_event_types() -> EventTypes:
    """The events that webhook endpoints can hear of."""
    return EventTypes(data=list(webhooks.EVENT_TYPES))
