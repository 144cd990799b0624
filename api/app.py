"""The app: routes, errors and the backend's life, put together.

`uvicorn --factory pressrun.api.app:create_app` serves it; `pressrun up` does, with a Valkey of its own beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from .. import __version__
from ..jobs.backend import connect
from ..jobs.settings import Settings, load_settings
from . import batches, control, files, health, jobs, models, results, uploads, webhooks
from .edge import Edge
from .errors import install_error_handlers
from .schemas import ErrorBody
from .waiting import Waiting

DESCRIPTION = "Batches of language model requests: OpenAI's Files and Batches, and single jobs to poll."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI app under `settings` (the environment's, if not given). It connects when it starts up."""
    settings = settings or load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backend = await to_thread.run_sync(connect, settings)
        app.state.health_threads = health.health_threads()
        app.state.test_threads = webhooks.test_threads()
        app.state.waiting = Waiting(app.state.backend)
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
    app.add_middleware(Edge, settings=settings)
    install_error_handlers(app)
    for part in (files, uploads, batches, control, results, jobs, models, webhooks, health):
        app.include_router(part.router)
    return app
