"""A TCP proxy that can be cut: connections are reset, half-closed, or left open with nothing passing.

One stands between each worker and Redis, so that a network fails for one of them while the others go on; one between
the API and Redis, one before the API, and one before S3.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
CHUNK = 2**16


class Cut:
    """Passes bytes between who connects to `port` and 127.0.0.1:`target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._open.clear()

    def heal(self) -> None:
        """What was held up passes on."""
        self._open.set()

    def reset(self) -> None:
        """Break every connection; new ones may be made at once."""
        for pair in self._take_all():
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def half_close(self) -> None:
        """What is sent still arrives; the answers do not."""
        for near, _ in self._take_all():
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()
        self.heal()
        self.reset()

    def _take_all(self) -> set[tuple[socket.socket, socket.socket]]:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        return pairs

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # Closed.
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.add((near, far))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK):
                self._open.wait()
                sink.sendall(data)
        except OSError:
            pass  # Cut: the other direction hears of it by the shutdown below.
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            with self._lock:
                self._pairs = {pair for pair in self._pairs if source not in pair}
