"""The door: whose request this is, and whether it may come in now. Stands before every body that is read.

Every path that the app serves needs an API key, but for those in `OPEN`. Without keys the door stands open in two cases
only: `PRESSRUN_AUTH=off`, and `auto` on a loopback address while no key was ever made. What counts is the address that
the connection came in on, whatever server runs the app and whatever it was told.
"""

from __future__ import annotations

import math
import time
from ipaddress import ip_address
from typing import Any

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs.backend import Backend
from ..jobs.errors import RateLimited, SettingsError, Unauthorized, UserError
from ..jobs.keys import KEYS
from ..jobs.records import DEFAULT_TENANT
from ..jobs.settings import Settings
from ..jobs.tenants import Allowance
from .errors import AWAY, answer_to

# They tell nothing of any tenant: whether the server lives, how busy it is, and what it can be asked.
OPEN = {"/health", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
HOW = "Send it as 'Authorization: Bearer sk-pressrun-…'; `pressrun keys create` makes one."
REFUSALS: tuple[type[Exception], ...] = (UserError, *AWAY)


class Door:
    """ASGI middleware inside `Edge`. Writes the tenant's name for the routes to find."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or not _is_served(scope):
            await self.app(scope, receive, send)
            return
        try:
            tenant, allowance = await to_thread.run_sync(self._let_in, scope)
        except REFUSALS as error:
            await answer_to(error, scope)(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = tenant

        async def send_allowance(message: Message) -> None:
            if message["type"] == "http.response.start" and allowance is not None:
                MutableHeaders(scope=message).update(rate_headers(allowance))
            await send(message)

        await self.app(scope, receive, send_allowance)

    def _let_in(self, scope: Scope) -> tuple[str, Allowance | None]:
        backend: Backend = scope["app"].state.backend
        tenant, allowance = self._spend(backend, scope)
        if allowance is not None and not allowance.granted:
            raise _too_many(tenant, allowance)
        return tenant, allowance

    def _spend(self, backend: Backend, scope: Scope) -> tuple[str, Allowance | None]:
        """Whose request it is, and what is left of theirs. Where no key is asked for, in one round trip."""
        tenants = backend.store.tenants
        if self.settings.auth == "off":
            return DEFAULT_TENANT, tenants.spend_request(DEFAULT_TENANT)
        if self.settings.auth == "auto" and _is_local(self.settings, scope):
            is_open, allowance = tenants.spend_request_unless(KEYS, DEFAULT_TENANT)
            if is_open:
                return DEFAULT_TENANT, allowance
        tenant = _tenant_of(backend, scope)
        return tenant, tenants.spend_request(tenant)


def check_settings(settings: Settings, backend: Backend) -> None:
    """Raise SettingsError where the server would listen to others and let nobody in, because there are no keys."""
    if settings.auth == "auto" and not is_loopback(settings.host) and not backend.keys.any():
        raise SettingsError(
            f"PRESSRUN_HOST={settings.host} can be reached from elsewhere, and there is no API key: make one with "
            "`pressrun keys create`, or let everybody in with PRESSRUN_AUTH=off"
        )


def rate_headers(allowance: Allowance) -> dict[str, str]:
    """OpenAI's names for what is left of the requests."""
    return {
        "x-ratelimit-limit-requests": str(allowance.limit),
        "x-ratelimit-remaining-requests": str(allowance.left),
        "x-ratelimit-reset-requests": f"{allowance.full_s:.3f}s",
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost may mean any."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_local(settings: Settings, scope: Scope) -> bool:
    server: Any = scope.get("server")
    return is_loopback(settings.host) and server is not None and is_loopback(server[0])


def _is_served(scope: Scope) -> bool:
    """Whether a route will take it: what is no route is 404 for everybody, and needs no Redis to be so."""
    return any(route.matches(scope)[0] == Match.FULL for route in scope["app"].routes)


def _too_many(tenant: str, allowance: Allowance) -> RateLimited:
    wait = math.ceil(allowance.wait_s)
    message = f"Rate limit reached for requests in organization {tenant}. Limit: {allowance.limit} / min. "
    return RateLimited(f"{message}Please try again in {wait}s.", retry_after_s=allowance.wait_s)


def _tenant_of(backend: Backend, scope: Scope) -> str:
    """Whose key the request shows, or raise Unauthorized."""
    kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Unauthorized(f"You didn't provide an API key. {HOW}", code="invalid_api_key")
    key = backend.keys.find(secret.strip())
    if key is None:
        raise Unauthorized(f"Incorrect API key provided. {HOW}", code="invalid_api_key")
    if not key.is_good(time.time()):
        ended = "expired" if key.revoked_at is None else "been revoked"
        raise Unauthorized(f"This API key ({key.id}) has {ended}. {HOW}", code="invalid_api_key")
    return key.tenant
