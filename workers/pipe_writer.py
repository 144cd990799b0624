"""Sends into a pipe from a thread of its own: a reader that has stopped reading does not stop who writes."""

from __future__ import annotations

import logging
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

log = logging.getLogger(__name__)


class PipeWriter:
    """`send` returns at once. The thread ends with `close`, or when the other end of the pipe does."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._queue: SimpleQueue[object] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pipe-writer", daemon=True)
        self._thread.start()

    def send(self, message: object) -> None:
        self._queue.put(message)

    def close(self, timeout: float | None = None) -> bool:
        """Whether the thread has ended in time, with everything sent that can be."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (message := self._queue.get()) is not None:
                self._pipe.send(message)
        except OSError:
            log.debug("the other end of the pipe is closed; who reads from it finds out too")
