"""What can go wrong, and how long it lasts: processes killed and stopped, connections cut, memory and disk full.

A fault strikes, waits, and heals; what was killed is started again by its keeper.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
from redis.exceptions import RedisError

from pressrun.bench.chaos_cut import Cut
from pressrun.bench.chaos_service import Kept, Service

FILLER_BYTES = 2**16
SMALL_FILE = 16  # bytes that a file may have while the disk is "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """One fault, by monotonic time."""

    kind: str
    at: float
    healed_at: float


class Faults:
    """Picks and commits them, the same ones for the same seed."""

    def __init__(self, service: Service, chance: random.Random, lease_s: float) -> None:
        self._service, self._chance, self._lease_s = service, chance, lease_s
        self._kinds: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: self._worker().send(signal.SIGKILL),
            "engine killed": lambda: self._to_engine(signal.SIGKILL),
            "API killed": lambda: service.api.send(signal.SIGKILL),
            "Valkey killed": lambda: service.valkey.send(signal.SIGKILL),
            "worker stopped for less than its lease": lambda: self._pause(self._worker(), self._short()),
            "worker stopped for more than its lease": lambda: self._pause(self._worker(), self._long()),
            "engine stopped": self._pause_engine,
            "API stopped": lambda: self._pause(service.api, self._short()),
            "Valkey stopped": lambda: self._pause(service.valkey, self._short()),
            "Valkey's memory full": self._fill_memory,
        }
        for name, cuts in service.networks.items():
            self._kinds |= self._cut_off(name, cuts)
        if service.has_small_disk:
            self._kinds["Valkey's disk full"] = self._fill_valkeys_disk
        if service.s3 is not None:
            s3 = service.s3
            self._kinds |= {
                "S3 killed": lambda: s3.send(signal.SIGKILL),
                "S3 stopped": lambda: self._pause(s3, self._short()),
            }
        else:
            self._kinds["disk full for a worker"] = self._fill_disk

    def strike(self) -> Struck | None:
        """One fault of any kind; None if there was nothing to hit just now."""
        kind = self._chance.choice(list(self._kinds))
        at = time.monotonic()
        if not self._kinds[kind]():
            return None
        return Struck(kind=kind, at=at, healed_at=time.monotonic())

    # How long, and whom

    def _short(self) -> float:
        return self._chance.uniform(0.1, 0.6) * self._lease_s

    def _long(self) -> float:
        return self._chance.uniform(1.1, 1.5) * self._lease_s

    def _worker(self) -> Kept:
        return self._chance.choice(self._service.workers)

    # What

    def _pause(self, part: Kept, seconds: float) -> bool:
        if not part.send(signal.SIGSTOP):
            return False
        time.sleep(seconds)
        part.send(signal.SIGCONT)
        return True

    def _to_engine(self, signum: int) -> bool:
        with contextlib.suppress(psutil.Error):
            for engine in self._worker().children():
                engine.send_signal(signum)
                return True
        return False

    def _pause_engine(self) -> bool:
        engines = self._worker().children()
        if not engines:
            return False
        with contextlib.suppress(psutil.Error):
            engines[0].suspend()
            time.sleep(self._short())
            engines[0].resume()
        return True

    def _cut_off(self, name: str, cuts: Sequence[Cut]) -> dict[str, Callable[[], bool]]:
        """What may happen to one of the networks that lead to `name`."""

        def one() -> Cut:
            return self._chance.choice(cuts)

        return {
            f"connections to {name} reset": lambda: _done(one().reset),
            f"connections to {name} half-closed": lambda: _done(one().half_close),
            f"network to {name} hangs for less than the lease": lambda: self._hang(one(), self._short()),
            f"network to {name} hangs for more than the lease": lambda: self._hang(one(), self._long()),
        }

    def _hang(self, cut: Cut, seconds: float) -> bool:
        cut.hang()
        time.sleep(seconds)
        cut.heal()
        return True

    def _fill_memory(self) -> bool:
        """A limit below what is in use already. A Valkey that dies meanwhile has none when it comes back."""
        try:
            self._service.redis.config_set("maxmemory", "1mb")
            time.sleep(self._short())
            self._service.redis.config_set("maxmemory", "0")
        except RedisError:
            return False
        return True

    def _fill_valkeys_disk(self) -> bool:
        """It refuses every write then, and takes them again once there is room."""
        filler = self._service.disk / "filler"
        try:
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(FILLER_BYTES))
                    file.flush()
            time.sleep(self._short())
        finally:
            filler.unlink()
        return True

    def _fill_disk(self) -> bool:
        """A worker that can write no more than a few bytes to any file, as its kernel will tell it."""
        pid = self._worker().pid
        if pid is None:
            return False
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            process = psutil.Process(pid)
            process.rlimit(psutil.RLIMIT_FSIZE, (SMALL_FILE, resource.RLIM_INFINITY))
            time.sleep(self._short())
            process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return True


def _done(action: Callable[[], None]) -> bool:
    """A fault that always finds somebody to hit."""
    action()
    return True
