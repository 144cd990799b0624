"""`/health`: whether this server can do its work, soon and for certain.

It has threads of its own and a deadline, so that it answers while every other thread waits for a slow Redis.
"""

from __future__ import annotations

import logging

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, Request, Response

from .. import __version__
from ..jobs.backend import Backend
from .deps import BackendDep
from .errors import AWAY, RETRY_AFTER_S
from .schemas import Health

router = APIRouter(tags=["health"])
log = logging.getLogger("pressrun.api")

UNREACHABLE: tuple[type[Exception], ...] = (*AWAY, TimeoutError)
DEADLINE_S = 3.0
NUM_THREADS = 4


@router.get("/health", responses={503: {"model": Health, "description": "Redis does not answer."}})
async def health(request: Request, response: Response, backend: BackendDep) -> Health:
    """200 while Redis answers, 503 otherwise."""
    try:
        with fail_after(DEADLINE_S):
            return await to_thread.run_sync(
                _ask, backend, limiter=request.app.state.health_threads, abandon_on_cancel=True
            )
    except UNREACHABLE as error:
        log.warning("health: Redis does not answer: %s", error or type(error).__name__)
        response.status_code, response.headers["Retry-After"] = 503, str(RETRY_AFTER_S)
        return Health(status="unavailable", version=__version__, redis="unreachable", models=[], active=None)


def health_threads() -> CapacityLimiter:
    """How many checks may wait for Redis at a time."""
    return CapacityLimiter(NUM_THREADS)


def _ask(backend: Backend) -> Health:
    models = [card.id for card in backend.store.models()]
    active = backend.store.request_stats()["active"]
    return Health(status="ok", version=__version__, redis="ok", models=models, active=active)
