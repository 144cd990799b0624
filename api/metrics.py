"""`/metrics`: what the workers, the deployment and this server count, for Prometheus.

Open to whoever reaches the server, as its peers' are: no label names a tenant, a batch or a key. It has threads and a
deadline of its own, like `/health`, and without Redis it still tells of this server's requests. Which route a request
is for is told by its template, so that the number of series does not depend on what clients send.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs.backend import Backend
from ..jobs.metrics import without_created
from ..jobs.standing import Standing
from .health import DEADLINE_S, NUM_THREADS, UNREACHABLE
from .results import EVENTS
from .timing import note_received

router = APIRouter(tags=["health"])
log = logging.getLogger("pressrun.api")

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
UNKNOWN = "none"  # A path that is no route.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Requests:
    """What one server counts of its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._total = Counter(
            "pressrun:http_requests",
            "Requests that were answered, or given up by their client (status none).",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "pressrun:http_request_duration_seconds",
            "From a request's first byte to its answer's last.",
            ("method", "route"),
            registry=self.registry,
            buckets=SECONDS,
        )

        self._first_event_seconds = Histogram(
            "pressrun:http_first_event_seconds",
            "From a request's first byte to the first event of its stream.",
            ("method", "route"),
            registry=self.registry,
            buckets=SECONDS,
        )

    def note_first_event(self, scope: Scope, seconds: float) -> None:
        """A stream has begun."""
        self._first_event_seconds.labels(scope["method"], route_of(scope)).observe(seconds)

    def note(self, scope: Scope, status: int | None, seconds: float) -> None:
        """One request is over; without a status it was not answered."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = route_of(scope)
        self._total.labels(method, route, "none" if status is None else str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class Counted:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, requests: Requests) -> None:
        self.app = app
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, is_stream = note_received(scope), None, False

        async def send_noted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENTS)
            await send(message)
            if is_stream and message.get("body"):
                is_stream = False
                self.requests.note_first_event(scope, time.monotonic() - started)

        try:
            await self.app(scope, receive, send_noted)
        finally:
            self.requests.note(scope, status, time.monotonic() - started)


class Scrapes:
    """Answers scrapes for one server."""

    def __init__(self, backend: Backend, requests: Requests) -> None:
        self._standing = Standing(backend)
        self._requests = requests
        self._threads = CapacityLimiter(NUM_THREADS)
        self._written: tuple[list[Metric], bytes] = ([], b"")

    async def text(self) -> bytes:
        """All that is known, in Prometheus' text format."""
        try:
            with fail_after(DEADLINE_S):
                shared = await to_thread.run_sync(self._shared, limiter=self._threads, abandon_on_cancel=True)
        except UNREACHABLE as error:
            log.warning("metrics: Redis does not answer: %s", error or type(error).__name__)
            return _text([_up(0), *self._own()])
        return shared + _text([_up(1), *self._own()])

    def _shared(self) -> bytes:
        """What all servers tell alike, written once for each reading: of many workers it is long."""
        metrics = self._standing.read()
        if metrics is not self._written[0]:
            self._written = metrics, _text(metrics)
        return self._written[1]

    def _own(self) -> Iterable[Metric]:
        return without_created(self._requests.registry.collect())


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics of workers, batches and this server, for Prometheus; vLLM's names where it has them."""
    return Response(await request.app.state.scrapes.text(), media_type=CONTENT_TYPE_LATEST)


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _text(metrics: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(metrics))
    return generate_latest(registry)


def _up(value: float) -> Metric:
    return GaugeMetricFamily("pressrun:redis_up", "Whether Redis answered; if not, most is missing.", value=value)


def route_of(scope: Scope) -> str:
    """The template of the route: as the router found it, or would have if the door had let the request in."""
    route = scope.get("route")
    if route is None and "app" in scope:
        routes = scope["app"].state.routes
        route = next((one for one in routes if one.matches(scope)[0] == Match.FULL), None)
    return getattr(route, "path", UNKNOWN)
