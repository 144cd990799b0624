"""A child that must not outlive its parent, even one that was killed."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_S = 0.5


def stop_with_parent(parent: int | None) -> None:
    """Send ourselves SIGTERM once `parent` is no longer our parent: we stop as if it had told us to."""
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
