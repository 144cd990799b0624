"""`pressrun up`: a Valkey, the API and a worker on one machine, kept running until told to stop.

Knows how to start, watch and stop them; what they do is theirs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from ..jobs.embedded import EmbeddedValkey
from ..jobs.settings import Settings
from .child import Child
from .parent import stop_with_parent
from .serve import listen_on

TICK_S = 0.1
VALKEY_LOOK_S = 1.0
HEALTH_LOOK_S = 0.25
WORKER_STOP_S = 45.0  # more than the worker's own grace period
API_STOP_S = 15.0

log = logging.getLogger("pressrun.up")
_direct = build_opener(ProxyHandler({}))  # no proxy leads to this machine


class Signals:
    """Counts how often we were told to stop; the second time means at once."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    @contextmanager
    def caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(settings: Settings, parent: int | None = None) -> int:
    """Run until told to stop; the exit code. Raises PressrunError if it cannot, with nothing left running."""
    listen_on(settings).close()  # Another Pressrun at this address would be taken for ours, and ours never be ready.
    stop = Signals()
    with stop.caught():
        stop_with_parent(parent)
        valkey = EmbeddedValkey(settings.data_dir) if settings.redis_url is None else None
        try:
            if valkey is not None:
                settings = settings.model_copy(update={"redis_url": valkey.start()})
            _run_children(settings, valkey, stop)
        finally:
            if valkey is not None:
                valkey.stop()
    log.info("stopped")
    return 0


def _run_children(settings: Settings, valkey: EmbeddedValkey | None, stop: Signals) -> None:
    environment = os.environ | settings.environment()
    api, worker = Child("api", environment), Child("worker", environment)
    look_for_valkey = every(VALKEY_LOOK_S)
    look_for_model = every(HEALTH_LOOK_S)
    ready = False
    try:
        while not stop.count:
            if valkey is not None and look_for_valkey():
                valkey.start()
            for child in (api, worker):
                child.care(settled=ready)
            if not ready and look_for_model() and is_ready(settings):
                ready = True
                log.info(
                    "ready: %s/v1 serves %s; data in %s", address(settings), settings.model_name, settings.data_dir
                )
            time.sleep(TICK_S)
        log.info("stopping: lines in hand are finished or handed back")
    finally:
        _stop(worker, WORKER_STOP_S, stop)
        _stop(api, API_STOP_S, stop)


def _stop(child: Child, patience_s: float, stop: Signals) -> None:
    """Tell it to stop, once more each time that we are told again, and kill it only if it does not."""
    child.signal_stop()
    told = stop.count
    deadline = time.monotonic() + patience_s
    while not child.is_gone():
        if stop.count > told:
            told = stop.count
            child.signal_stop()
        if time.monotonic() > deadline:
            child.kill()
        time.sleep(TICK_S)


def address(settings: Settings) -> str:
    """Where a client on this machine reaches the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def is_ready(settings: Settings) -> bool:
    """Whether the API answers and a worker serves the model."""
    try:
        with _direct.open(f"{address(settings)}/health", timeout=2) as response:
            health = json.load(response)
    except (URLError, OSError, ValueError):
        return False
    return settings.model_name in health["models"]


def every(interval_s: float) -> Callable[[], bool]:
    """A clock that says yes at once, and then once an interval."""
    due = 0.0

    def is_due() -> bool:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return False
        due = now + interval_s
        return True

    return is_due
