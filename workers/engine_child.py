"""What runs in the engine's process: commands in, one step after another, outputs out.

Two threads move data over the pipe, so that a step never waits for the parent. The process ends when the parent
closes the pipe, and at once when the parent dies. Knows nothing of Redis or of lines.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..engine.request import Attend, Load, ModelInfo, Output, Request

PR_SET_PDEATHSIG = 1
LOAD_INTERVAL_S = 0.2


class Engine(Protocol):
    """What an engine does; `pressrun.engine.engine.Engine` and the echo engine are two."""

    @property
    def info(self) -> ModelInfo: ...

    def add(self, requests: Sequence[Request]) -> None: ...
    def step(self, attend: Attend | None = None) -> list[Output]: ...

    def abort(self, ids: Iterable[str]) -> None: ...
    def has_work(self) -> bool: ...
    def load(self) -> Load: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The model is loaded."""

    info: ModelInfo
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """The engine could not be built; it is of no use to try the same again."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What one step gave."""

    outputs: list[Output]
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Requests to add, and ids of requests to abort."""

    add: tuple[Request, ...] = ()
    abort: tuple[str, ...] = ()


def main(pipe: Connection, factory: Callable[[], Engine], parent_pid: int) -> None:
    """Build an engine, and step it until the pipe closes."""
    _die_with(parent_pid)
    # Ctrl-C and a service manager's SIGTERM reach the whole group: the parent decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        engine = factory()
    except Exception as error:
        # The edge of a process: the parent logs it and gives up.
        pipe.send(StartFailed(message=f"{type(error).__name__}: {error}"))
        return
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    outbox: SimpleQueue[Any] = SimpleQueue()
    outbox.put(Started(info=engine.info, load=engine.load()))
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    threading.Thread(target=_write, args=(pipe, outbox), daemon=True).start()
    _run(engine, inbox, outbox)


def _run(engine: Engine, inbox: SimpleQueue[Command | None], outbox: SimpleQueue[Any]) -> None:
    said, closed = 0.0, False

    def obey(*, wait: bool) -> None:
        nonlocal closed
        for command in _commands(inbox, wait=wait):
            if command is None:
                closed = True
                return
            if command.add:
                engine.add(command.add)
            if command.abort:
                engine.abort(command.abort)

    def attend(outputs: list[Output]) -> None:
        if outputs:
            outbox.put(Stepped(outputs=outputs, load=engine.load()))
        obey(wait=False)

    while True:
        obey(wait=not engine.has_work())
        if closed:
            return
        outputs = engine.step(attend) if engine.has_work() else []
        if outputs or time.monotonic() - said > LOAD_INTERVAL_S or not engine.has_work():
            outbox.put(Stepped(outputs=outputs, load=engine.load()))
            said = time.monotonic()


def _commands(inbox: SimpleQueue[Command | None], *, wait: bool) -> Iterable[Command | None]:
    """Everything that has arrived; with `wait`, at least one."""
    if wait:
        yield inbox.get()
    while True:
        try:
            yield inbox.get_nowait()
        except Empty:
            return


def _read(pipe: Connection, inbox: SimpleQueue[Command | None]) -> None:
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        inbox.put(None)


def _write(pipe: Connection, outbox: SimpleQueue[Any]) -> None:
    try:
        while True:
            pipe.send(outbox.get())
    except OSError:
        return  # The parent has closed the pipe: the reader sees it too and ends the process.


def _die_with(parent_pid: int) -> None:
    """Be killed when the parent dies, however it dies. Elsewhere than on Linux the closing pipe has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
