"""What the API says of webhooks: OpenAI's endpoint objects, and Pressrun's own log of deliveries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ..jobs.deliveries import Delivery, DeliveryStatus
from ..jobs.webhooks import Endpoint
from .schemas import Identified


class EndpointObject(Identified):
    """A URL that is told when batches end. Of its secret only the last characters are shown."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str

    @classmethod
    def of(cls, endpoint: Endpoint) -> EndpointObject:
        return cls(**_endpoint_fields(endpoint))


class EndpointWithSecret(EndpointObject):
    """An endpoint as it is shown to who has just made it, or its secret."""

    signing_secret: str

    @classmethod
    def showing(cls, endpoint: Endpoint) -> EndpointWithSecret:
        return cls(**_endpoint_fields(endpoint), signing_secret=endpoint.secret)


class EndpointDeleted(Identified):
    """The answer to deleting an endpoint."""

    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTested(BaseModel):
    """What an endpoint answered to a made-up event."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: Literal[True] = True
    webhook_endpoint_id: str


class EventTypes(BaseModel):
    """The events that there are."""

    object: Literal["list"] = "list"
    data: list[str]


class AttemptObject(BaseModel):
    """One POST of an event: the status that came back, or why none did."""

    at: int
    status_code: int | None
    error: str | None


class DeliveryObject(Identified):
    """An event on its way to an endpoint, with every attempt so far."""

    object: Literal["webhook_delivery"] = "webhook_delivery"
    created_at: int
    event_id: str
    event_type: str
    webhook_endpoint_id: str
    batch_id: str
    status: DeliveryStatus
    next_attempt_at: int | None
    attempts: list[AttemptObject]

    @classmethod
    def of(cls, delivery: Delivery) -> DeliveryObject:
        attempts = [AttemptObject(at=one.at, status_code=one.status_code, error=one.error) for one in delivery.attempts]
        return cls(
            id=delivery.id,
            created_at=delivery.created_at,
            event_id=delivery.event_id,
            event_type=delivery.event_type,
            webhook_endpoint_id=delivery.endpoint_id,
            batch_id=delivery.batch_id,
            status=delivery.status,
            next_attempt_at=delivery.next_attempt_at,
            attempts=attempts,
        )


def _endpoint_fields(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "signing_secret_hint": f"whsec_…{endpoint.secret[-4:]}",
    }
