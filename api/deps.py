"""What routes ask for: the connected backend."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from ..jobs.backend import Backend


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


BackendDep = Annotated[Backend, Depends(_backend)]
