"""The app: routes, errors and the backend's life, put together.

`uvicorn --factory pressrun.api.app:create_app` serves it; `pressrun up` does, with a Valkey of its own beside it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from .. import __version__
from ..jobs.backend import Backend, connect
from ..jobs.errors import SettingsError
from ..jobs.settings import Settings, load_settings
from . import batches, control, files, health, jobs, metrics, models, results, uploads, webhooks
from .door import Door, check_settings
from .edge import Edge
from .errors import AWAY, install_error_handlers
from .schemas import ErrorBody
from .tracing import Traced
from .waiting import Waiting

log = logging.getLogger("pressrun.api")

KEY = "A key made with `pressrun keys create`."
DESCRIPTION = "Batches of language model requests: OpenAI's Files and Batches, and single jobs to poll."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI app under `settings` (the environment's, if not given). It connects when it starts up."""
    settings = settings or load_settings()
    requests = metrics.Requests()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backend = await to_thread.run_sync(open_backend, settings)
        app.state.health_threads = health.health_threads()
        app.state.test_threads = webhooks.test_threads()
        app.state.waiting = Waiting(app.state.backend)
        app.state.scrapes = metrics.Scrapes(app.state.backend, requests)
        try:
            yield
        finally:
            await app.state.waiting.close()
            await to_thread.run_sync(app.state.backend.close)

    app = FastAPI(
        title="Pressrun",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.add_middleware(Door, settings=settings)
    app.add_middleware(Edge, settings=settings)
    app.add_middleware(Traced)
    app.add_middleware(metrics.Counted, requests=requests)  # Added last: outermost.
    install_error_handlers(app)
    # For the document only, where a key is needed whatever the address: it is the door that asks for it.
    shown = [] if settings.auth != "required" else [Depends(HTTPBearer(auto_error=False, description=KEY))]
    closed = (files, uploads, batches, control, results, jobs, models, webhooks)
    for part in closed:
        app.include_router(part.router, dependencies=shown)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.state.routes = [route for part in (*closed, health, metrics) for route in part.router.routes]
    return app


def open_backend(settings: Settings) -> Backend:
    """Connect, and refuse to serve others without keys. A Redis that is away cannot say: the door stays shut then."""
    backend = connect(settings)
    try:
        check_settings(settings, backend)
    except AWAY as error:
        log.warning("the API starts without knowing whether there are keys: %s", error)
    except SettingsError:
        backend.close()
        raise
    return backend
