"""What runs in the engine's process: commands in, one step after another, outputs out.

Two threads move data over the pipe where that takes time, so that a step never waits for the parent. The process ends
when the parent closes the pipe, and at once when the parent dies. Knows nothing of Redis or of lines.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Protocol

from ..engine.request import URGENT, Attend, Load, ModelInfo, Output, Passage, Request
from ..jobs.garbage import settle
from .pipe_writer import PipeWriter

PR_SET_PDEATHSIG = 1
LOAD_INTERVAL_S = 0.2
# Requests that are taken in between two steps, which a step of the device hides; and whenever it is looked for who is
# urgent, so that nobody of these waits for long. The sooner all are in, the better is the order that they run in.
MOST_BETWEEN_STEPS, MOST_AT_A_LOOK = 256, 32
# Requests or outputs: while a message is packed or unpacked nothing else goes on in its process.
MOST_IN_MESSAGE = 64
SWITCH_S = 0.0005  # Python's 5 ms are a fifth of a step, which a thread that unpacks requests may take each time.


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
    """What one step gave, or a part of that."""

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
    outbox = PipeWriter(pipe)
    outbox.send(Started(info=engine.info, load=engine.load()))
    sys.setswitchinterval(SWITCH_S)
    settle()
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    EngineLoop(engine, inbox, outbox.send).run()


class EngineLoop:
    """Steps the engine, and takes commands between its steps and in the middle of long ones.

    What is not urgent is taken in by and by while there is work: the device waits for an engine that hashes the prompts
    of hundreds at once, and so does who is urgent.
    """

    def __init__(self, engine: Engine, inbox: SimpleQueue[Command | None], send: Callable[[Stepped], None]) -> None:
        self._engine, self._inbox, self._send = engine, inbox, send
        self._arrived: deque[Request] = deque()
        self._came_at: dict[str, float] = {}  # Of urgent requests that nothing was told of yet.
        self._closed = False
        self._looks = False  # Whether the last step was interrupted to look for who is urgent.
        self._said = 0.0

    def run(self) -> None:
        """Until the parent closes the pipe."""
        while True:
            self._obey(wait=not self._has_work())
            if self._closed:
                return
            self._take_in(self._room() if self._engine.has_work() else len(self._arrived))
            self._looks = False
            outputs = self._engine.step(self._attend) if self._engine.has_work() else []
            if outputs or time.monotonic() - self._said > LOAD_INTERVAL_S or not self._has_work():
                self._tell(outputs)

    def _room(self) -> int:
        return MOST_AT_A_LOOK if self._looks else MOST_BETWEEN_STEPS

    def _has_work(self) -> bool:
        return bool(self._arrived) or self._engine.has_work()

    def _attend(self, outputs: list[Output]) -> None:
        self._looks = True
        if outputs:
            self._tell(outputs)
        self._obey(wait=False)
        self._take_in(MOST_AT_A_LOOK)

    def _tell(self, outputs: list[Output]) -> None:
        load = self._engine.load()
        load = replace(load, num_waiting=load.num_waiting + len(self._arrived))
        if self._came_at:
            outputs = [self._with_passage(output) for output in outputs]
        outputs = sorted(outputs, key=_is_last)  # Somebody reads what goes on.
        for start in range(0, len(outputs) or 1, MOST_IN_MESSAGE):
            self._send(Stepped(outputs=outputs[start : start + MOST_IN_MESSAGE], load=load))
        self._said = time.monotonic()

    def _with_passage(self, output: Output) -> Output:
        came_at = self._came_at.pop(output.id, None)
        return (
            output if came_at is None else replace(output, passage=Passage(came_at=came_at, left_at=time.monotonic()))
        )

    def _obey(self, *, wait: bool) -> None:
        for command in _commands(self._inbox, wait=wait):
            if command is None:
                self._closed = True
                return
            urgent = [request for request in command.add if request.priority < URGENT]
            self._came_at |= dict.fromkeys((request.id for request in urgent), time.monotonic())
            self._engine.add(urgent)
            self._arrived += [request for request in command.add if request.priority >= URGENT]
            for id in command.abort:
                self._came_at.pop(id, None)
            if command.abort:
                self._take_in(len(self._arrived))  # They may be among those.
                self._engine.abort(command.abort)

    def _take_in(self, most: int) -> None:
        count = min(most, len(self._arrived))
        if count:
            self._engine.add([self._arrived.popleft() for _ in range(count)])


def _is_last(output: Output) -> bool:
    return output.finish_reason is not None


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


def _die_with(parent_pid: int) -> None:
    """Be killed when the parent dies, however it dies. Elsewhere than on Linux the closing pipe has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
