"""What routes ask for: the connected backend, and for whom they work."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from ..jobs.backend import Backend


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def _tenant(request: Request) -> str:
    """Written by the door (`door.py`), which no request to a route comes around."""
    tenant: str = request.state.tenant
    return tenant


BackendDep = Annotated[Backend, Depends(_backend)]
TenantDep = Annotated[str, Depends(_tenant)]
