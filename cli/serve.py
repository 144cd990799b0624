"""What `pressrun api` and `pressrun worker` run, each in its own process."""

from __future__ import annotations

import logging
import os
import socket

from ..jobs.errors import SettingsError
from ..jobs.settings import Settings
from .model import ensure_model

GRACE_S = 5  # How long requests under way may still take when the API is told to stop.
BACKLOG = 2048
KEEP_ALIVE_S = 30

log = logging.getLogger("pressrun")


def run_api(settings: Settings) -> int:
    """Serve until told to stop. Raises SettingsError if the address cannot be had."""
    _need_redis(settings)
    import uvicorn

    from ..api.app import create_app, open_backend
    from ..jobs.garbage import settle

    open_backend(settings).close()  # What speaks against a start is one clear error, and no traceback of the server's.
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=GRACE_S,
        ws="none",
        lifespan="on",
    )
    with listen_on(settings) as listener:
        server = uvicorn.Server(config)
        settle()
        log.info("the API listens on %s port %d", settings.host, settings.port)
        server.run(sockets=[listener])
    return 0 if server.started else 1


def run_worker(settings: Settings) -> int:
    """Work until told to stop; the model is fetched first if need be."""
    _need_redis(settings)
    from ..workers.worker import run

    if settings.engine != "native":
        return run(settings)
    folder = ensure_model(settings.model, settings.data_dir, log.info)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # All of it is on disk: nothing below needs to ask the hub.
    return run(settings, folder)


def _need_redis(settings: Settings) -> None:
    if settings.redis_url is None:
        raise SettingsError("PRESSRUN_REDIS_URL is not set; `pressrun up` runs a Valkey of its own")


def listen_on(settings: Settings) -> socket.socket:
    """Bound here and not by the server, so that a taken port is one clear error."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    # Asyncio does so only for sockets that name their protocol; without it, every answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Accepted connections inherit it: firewalls forget those that are silent, and answers may take minutes.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)
    return listener
