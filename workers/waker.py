"""A thread's way to end the main loop's wait early. Knows nothing of what there is to do."""

from __future__ import annotations

import os


class Waker:
    """Something to wait on, beside a connection: readable from a `wake` until the next `rest`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            return  # The pipe is full of wake-ups already.

    def rest(self) -> None:
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
