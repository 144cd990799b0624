"""Keeps an engine running: starts it, hears it, starts it again when it dies or hangs, and knows when to give up.

Knows nothing of where lines come from or of where their answers go.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from .engine_process import EngineDied, EngineProcess
from .flight import Flight
from .metrics import WorkerMetrics
from .runs import Flying
from .waker import Waker
from .watchdog import Watchdog

log = logging.getLogger(__name__)
RESTART_S, LONGEST_RESTART_S = 0.1, 1.0
UNDYING_S = 30.0  # From SIGKILL on.
EXIT_UNDYING = 70
MOST_DEATHS = 24  # Enough to single out one line of thousands; more, and it is the engine.


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Lines that are answered, and lines that are given up, each with its error's code."""

    complete: list[Flying]
    given_up: list[tuple[Flying, str]]


class EngineKeeper:
    """Call `hear` again and again. `ready` is set once the engine has come up for the first time."""

    def __init__(
        self, engine: EngineProcess, flight: Flight, waker: Waker, metrics: WorkerMetrics, *, stall_s: float
    ) -> None:
        self._engine, self._flight, self._waker, self._metrics = engine, flight, waker, metrics
        self._watchdog = Watchdog(stall_s)
        self._hung, self._killed_at = False, 0.0
        self._start_at = 0.0
        self._deaths = 0
        self._progress = 0
        self.ready = False

    @property
    def worn_out(self) -> bool:
        """Whether the engine has died too often to be started again."""
        return self._deaths >= MOST_DEATHS

    def pump(self) -> None:
        """Send what is ready, if the engine is up."""
        if self._engine.info is not None:
            self._flight.pump()

    def hear(self, timeout: float) -> Heard:
        """Send what is ready and wait up to `timeout` seconds for answers.

        Raises EngineStartError, and EngineDied for an engine that never came up or is worn out.
        """
        if not self._engine.running and time.monotonic() >= self._start_at:
            self._engine.start()
        up = self._engine.info is not None
        self.pump()
        try:
            outputs = self._engine.poll(timeout, self._waker)
        except EngineDied as death:
            return self._died(death)
        self._metrics.note_engine(self._engine.births, self._engine.load, outputs)
        self.ready = self.ready or up
        if outputs:
            self._deaths = 0
        ended = self._flight.take(outputs) + self._expired()
        self._watch()
        return _heard(ended)

    def _expired(self) -> list[Flying]:
        """Lines whose time is up. While the engine gets nowhere, none is: the watchdog finds out whose doing it is."""
        before, self._progress = self._progress, self._engine.progress
        return [] if self._progress == before else self._flight.expire()

    def _watch(self) -> None:
        """Kill an engine that hangs: the next `hear` finds it dead. End with one that cannot be killed."""
        busy = self._flight.num_inside > 0
        if not self._watchdog.sees_hang(busy=busy, progress=self._engine.progress):
            return
        if not self._hung:
            log.error("the engine has done nothing for %g s and is killed", self._watchdog.patience_s)
            self._hung, self._killed_at = True, time.monotonic()
            self._engine.kill()
        elif time.monotonic() - self._killed_at > UNDYING_S:
            # It is held by a driver, and every orderly end would wait for it. Others wait for the leases only.
            log.critical("the engine cannot be killed; the worker ends without it")
            os._exit(EXIT_UNDYING)

    def _died(self, death: EngineDied) -> Heard:
        self._deaths += 1
        self._metrics.note_engine(self._engine.births, None, ())
        log.error("%s (%d in a row, with %d lines in hand)", death, self._deaths, len(self._flight))
        if not self.ready or self.worn_out:
            raise death
        hung, self._hung = self._hung, False
        deadly = self._flight.engine_died("engine_hung" if hung else "engine_crashed")
        if deadly:
            named = deadly[0].prepared.line.custom_id, len(deadly) - 1
            log.error("line %r kills the engine and is given up, with %d others that ask the same", *named)
        self._start_at = time.monotonic() + min(RESTART_S * 2 ** (self._deaths - 1), LONGEST_RESTART_S)
        return _heard(deadly)


def _heard(ended: list[Flying]) -> Heard:
    return Heard(
        complete=[flying for flying in ended if flying.error is None],
        given_up=[(flying, flying.error) for flying in ended if flying.error is not None],
    )
