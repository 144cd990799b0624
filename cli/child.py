"""One process that is kept running: started, started again when it dies, stopped with all that it started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from ..jobs.errors import PressrunError

LONG_ENOUGH_S = 10.0  # A process that ran this long did start.
MAX_QUICK_DEATHS = 5
MAX_DEATHS_AT_FIRST = 2  # What has never run is not worth more patience.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
EXIT_SETTINGS = 2

log = logging.getLogger("pressrun.up")


class ChildGaveUp(PressrunError):
    """A child process died again and again, or cannot start under these settings."""


class Child:
    """`pressrun <role>` in a process group of its own, so that a Ctrl-C reaches it through us only."""

    def __init__(self, role: str, environment: dict[str, str]) -> None:
        self.role = role
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._quick_deaths = 0

    def care(self, *, settled: bool) -> None:
        """Start it if it should run and does not. `settled`: all has been running before, so the settings are good.

        Raises ChildGaveUp after too many quick deaths, or at once for settings that cannot work.
        """
        if self._process is not None and self._has_ended(self._process):
            self._note_death(self._collect(self._process), settled=settled)
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()

    def signal_stop(self) -> None:
        """Ask it to stop, in its own way."""
        if self._process is not None and not self._has_ended(self._process):
            self._process.send_signal(signal.SIGTERM)

    def is_gone(self) -> bool:
        """Whether it has ended, with everything in its group."""
        if self._process is not None and self._has_ended(self._process):
            self._collect(self._process)
        return self._process is None

    def kill(self) -> None:
        """End it now, with everything in its group."""
        if self._process is not None:
            log.warning("%s does not stop; it is killed", self.role)
            self._collect(self._process)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "pressrun.cli", self.role, "--parent", str(os.getpid())]
        self._process = subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._started_at = time.monotonic()

    @staticmethod
    def _has_ended(process: subprocess.Popen[bytes]) -> bool:
        """Whether it is dead, without collecting it: until then its number cannot become another group's."""
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _collect(self, process: subprocess.Popen[bytes]) -> int:
        """Kill what is left of its group, and take its exit status."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._process = None
        return process.wait()

    def _note_death(self, status: int, *, settled: bool) -> None:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        if status == EXIT_SETTINGS and not settled:
            raise ChildGaveUp(f"the {self.role} cannot run like this; its message is above")
        lasted = time.monotonic() - self._started_at
        self._quick_deaths = self._quick_deaths + 1 if lasted < LONG_ENOUGH_S or not settled else 1
        if self._quick_deaths >= (MAX_QUICK_DEATHS if settled else MAX_DEATHS_AT_FIRST):
            raise ChildGaveUp(f"the {self.role} {how}, {self._quick_deaths} times in a row; its messages are above")
        pause = BACKOFF_S[self._quick_deaths - 1]
        log.warning("the %s %s after %.1f s; it is started again in %.1f s", self.role, how, lasted, pause)
        self._start_at = time.monotonic() + pause
