"""The engine's process, seen from the worker: requests in, outputs out, and what happens when it dies.

Knows nothing of lines or shards: whoever added requests to an engine that died adds them again to the next one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ..engine.request import URGENT, Load, ModelInfo, Output, Request
from .engine_child import MOST_IN_MESSAGE, Command, Engine, Started, StartFailed, Stepped, main
from .pipe_writer import PipeWriter
from .waker import Waker

STOP_S = 5.0
MOST_HEARD = 1024  # Reading is quick, and who is urgent may be behind lines.


class EngineDied(Exception):
    """The engine's process ended by itself; what it was working on is lost."""


class EngineStartError(Exception):
    """The engine cannot be built from its settings; the message says why."""


class EngineProcess:
    """Builds the engine with `factory` in a process of its own. To be used from one thread.

    `start` returns at once; the engine takes requests once `info` is set, which `poll` brings about. `progress` counts
    the messages that told of anything new, and `births` the processes that were started.
    """

    def __init__(self, factory: Callable[[], Engine]) -> None:
        self._factory = factory
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._writer: PipeWriter | None = None
        self.progress = self.births = 0
        self.info: ModelInfo | None = None
        self.load: Load | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process; the one before must have ended."""
        assert not self.running, "the engine runs already"
        self.births += 1
        # On a CPU that others use too, threads that spin while they wait slow a step fivefold. OpenMP reads this as
        # torch loads, so it is set before the child starts.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._factory, os.getpid())
        self._process = context.Process(target=main, args=arguments, name="pressrun-engine", daemon=True)
        self._process.start()
        theirs.close()  # So that the pipe ends with the child.
        self._writer = PipeWriter(self._pipe)

    @property
    def running(self) -> bool:
        """Whether there is a process, as far as `poll` has seen."""
        return self._process is not None

    def add(self, requests: Sequence[Request]) -> None:
        """Send requests, the urgent ones ahead of all that is still to be sent."""
        urgent = tuple(request for request in requests if request.priority < URGENT)
        if urgent:
            self._send(Command(add=urgent), urgent=True)
        others = [request for request in requests if request.priority >= URGENT]
        for start in range(0, len(others), MOST_IN_MESSAGE):
            self._send(Command(add=tuple(others[start : start + MOST_IN_MESSAGE])))

    def abort(self, ids: Iterable[str]) -> None:
        wanted = tuple(ids)
        if wanted:
            self._send(Command(abort=wanted))

    def poll(self, timeout: float, waker: Waker | None = None) -> list[Output]:
        """Outputs since the last call, waiting up to `timeout` seconds for some, for the start, or for `waker`.

        Of very many, those that came first; the next call gives others at once.
        Raises EngineDied or EngineStartError once the process has ended and its last outputs have been returned.
        """
        pipes = [] if self._pipe is None else [self._pipe]
        wakers = [] if waker is None else [waker.fileno()]
        if any(isinstance(source, int) for source in wait([*pipes, *wakers], timeout)) and waker is not None:
            waker.rest()
        outputs: list[Output] = []
        try:
            while len(outputs) < MOST_HEARD and self._pipe is not None and self._pipe.poll():
                outputs += self._heard(self._pipe.recv())
        except (EOFError, OSError) as error:
            if not outputs:
                raise EngineDied(f"the engine's process ended: {self._bury()}") from error
        return outputs

    def kill(self) -> None:
        """End the process now, in the middle of whatever it does; `poll` raises EngineDied for it."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process: at the end of its step, or after `STOP_S` seconds by force."""
        if self.running:
            self._bury()

    def _heard(self, message: object) -> list[Output]:
        if isinstance(message, Stepped):
            self.progress += bool(message.outputs) or message.load != self.load
            self.load = message.load
            return message.outputs
        if isinstance(message, StartFailed):
            self._bury()
            raise EngineStartError(message.message)
        assert isinstance(message, Started)
        self.info, self.load = message.info, message.load
        return []

    def _send(self, command: Command, *, urgent: bool = False) -> None:
        if self._writer is not None:
            self._writer.send(command, urgent=urgent)

    def _bury(self) -> str:
        """Close what is left of the process; how it ended, in words."""
        assert self._process is not None
        assert self._pipe is not None
        assert self._writer is not None
        if not self._writer.close(STOP_S):
            self._process.kill()  # It reads no more: neither would it see the pipe's end.
            self._writer.close()
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process.close()
        self._process = self._pipe = self._writer = self.info = self.load = None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
