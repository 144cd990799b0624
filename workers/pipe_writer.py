"""Sends into a pipe: at once where that waits for nothing, else from a thread of its own.

So a reader that has stopped reading does not stop who writes, and a message is not late because a thread must wake up
first: that takes as long as another thread of the process goes on with its work.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
from collections import deque
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue

log = logging.getLogger(__name__)
# A socket that Linux says can be written to has room for more than that. Elsewhere nobody says so.
MOST_AT_ONCE = 32 * 2**10 if sys.platform == "linux" else 0


class PipeWriter:
    """`send` returns at once, and is for one thread. What is urgent goes before all else that waits.

    The thread ends with `close`, or when the other end of the pipe does.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLOUT)
        self._urgent: deque[bytes] = deque()
        self._others: deque[bytes] = deque()
        self._signals: SimpleQueue[bool] = SimpleQueue()  # One for each message; False ends it.
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pipe-writer", daemon=True)
        self._thread.start()

    def send(self, message: object, *, urgent: bool = False) -> None:
        packed = bytes(ForkingPickler.dumps(message))
        if not self._sent_at_once(packed, urgent=urgent):
            (self._urgent if urgent else self._others).append(packed)
            self._signals.put(True)

    def close(self, timeout: float | None = None) -> bool:
        """Whether the thread has ended in time, with everything sent that can be."""
        self._signals.put(False)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _sent_at_once(self, packed: bytes, *, urgent: bool) -> bool:
        if len(packed) > MOST_AT_ONCE or not self._writing.acquire(blocking=False):
            return False
        try:
            if self._urgent or (self._others and not urgent) or not self._has_room():
                return False
            self._pipe.send_bytes(packed)
            return True
        except OSError:
            return True  # As in the thread: who reads finds out.
        finally:
            self._writing.release()

    def _has_room(self) -> bool:
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))

    def _run(self) -> None:
        try:
            while self._signals.get():
                with self._writing:
                    self._pipe.send_bytes((self._urgent or self._others).popleft())
        except OSError:
            log.debug("the other end of the pipe is closed; who reads from it finds out too")
