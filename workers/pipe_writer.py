"""Sends into a pipe from a thread of its own: a reader that has stopped reading does not stop who writes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from multiprocessing.connection import Connection
from queue import SimpleQueue

log = logging.getLogger(__name__)


class PipeWriter:
    """`send` returns at once. What is urgent goes before all else that waits.

    The thread ends with `close`, or when the other end of the pipe does.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._urgent: deque[object] = deque()
        self._others: deque[object] = deque()
        self._signals: SimpleQueue[bool] = SimpleQueue()  # One for each message; False ends it.
        self._thread = threading.Thread(target=self._run, name="pipe-writer", daemon=True)
        self._thread.start()

    def send(self, message: object, *, urgent: bool = False) -> None:
        (self._urgent if urgent else self._others).append(message)
        self._signals.put(True)

    def close(self, timeout: float | None = None) -> bool:
        """Whether the thread has ended in time, with everything sent that can be."""
        self._signals.put(False)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._signals.get():
                self._pipe.send((self._urgent or self._others).popleft())
        except OSError:
            log.debug("the other end of the pipe is closed; who reads from it finds out too")
