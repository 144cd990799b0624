"""Posting events to endpoints, signed as Standard Webhooks has it, again and again until one says yes.

The same event always carries the same `webhook-id`, and the time and signature of the attempt. Of the answer only the
status counts: any 2xx is yes, 410 is never again, all else is tried later, for three days.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from standardwebhooks import Webhook

from .. import __version__
from . import ids
from .backend import Backend
from .deliveries import Attempt, Delivery, DeliveryStatus, Taken, event_body, settle
from .errors import NotFound, UserError
from .outbound import PostFailed, post
from .records import DEFAULT_TENANT
from .webhooks import Endpoint, check_event_type, find_endpoint

log = logging.getLogger(__name__)

RETRY_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
GONE = 410


def attempt(backend: Backend, taken: Taken, now: float) -> Delivery | None:
    """Post a delivery once and settle what comes of it; None where its endpoint is gone."""
    delivery = taken.delivery
    try:
        endpoint = find_endpoint(backend, delivery.endpoint_id, delivery.tenant)
    except NotFound:
        settle(backend, taken, replace(delivery, status="failed"))
        return None
    made = _post(backend, endpoint, delivery.event_id, delivery.body, now)
    settled = _after(delivery, made)
    settle(backend, taken, settled)
    if not made.succeeded:
        reason = made.error or f"status {made.status_code}"
        log.warning("webhook %s to %s: %s; now %s", delivery.event_id, endpoint.id, reason, settled.status)
    return settled


def send_test(backend: Backend, endpoint_id: str, event_type: str, tenant: str = DEFAULT_TENANT) -> int:
    """Post a made-up event to an endpoint, now and once; the status that came back."""
    check_event_type(event_type, "event_type")
    endpoint, now = find_endpoint(backend, endpoint_id, tenant), time.time()
    event_id = ids.new_id("evt_")
    made = _post(backend, endpoint, event_id, event_body(event_id, event_type, int(now), "batch_test"), now)
    if made.status_code is None:
        raise UserError(f"The endpoint could not be reached: {made.error}.", param="url", code="endpoint_unreachable")
    return made.status_code


def _post(backend: Backend, endpoint: Endpoint, event_id: str, body: str, now: float) -> Attempt:
    settings = backend.settings
    try:
        status = post(
            endpoint.url,
            body.encode(),
            _headers(endpoint, event_id, body, now),
            allow_private=settings.webhook_allow_private,
            timeout_s=settings.webhook_timeout_s,
        )
    except PostFailed as error:
        return Attempt(at=int(now), error=str(error))
    return Attempt(at=int(now), status_code=status)


def _headers(endpoint: Endpoint, event_id: str, body: str, now: float) -> dict[str, str]:
    """Standard Webhooks' three, signed with every secret that is good now."""
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(secret).sign(event_id, at, body) for secret in endpoint.signing_secrets(now)]
    return {
        "Content-Type": "application/json",
        "User-Agent": f"pressrun/{__version__}",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }


def _after(delivery: Delivery, made: Attempt) -> Delivery:
    """The delivery after one more attempt: done, given up, or to be tried again."""
    attempts = (*delivery.attempts, made)
    status: DeliveryStatus = "pending"
    if made.succeeded:
        status = "delivered"
    elif made.status_code == GONE or len(attempts) > len(RETRY_S):
        status = "failed"
    again = made.at + RETRY_S[len(attempts) - 1] if status == "pending" else None
    return replace(delivery, status=status, next_attempt_at=again, attempts=attempts)
