"""The lines that are in the engine, or ready to be: sending, gathering, aborting, and finding out which line kills it.

When the engine dies, the lines that were in it are tried again in halves, a half at a time and nothing beside it. The
half that kills it again is halved in turn, until the one line that does it is alone.
Knows nothing of processes or of Redis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from ..engine.request import Output, Request
from .prompts import Prepared
from .shard import RunningShard

DEATHS_ALONE = 2  # The first may be an accident.


class Sink(Protocol):
    """Where requests go."""

    def add(self, requests: Sequence[Request]) -> None: ...
    def abort(self, ids: Iterable[str]) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Flying:
    """One line on its way: what has come back of it so far, and how often the engine died with it alone inside."""

    name: str
    shard: RunningShard
    prepared: Prepared
    weight: float
    outputs: dict[int, Output] = field(default_factory=dict)
    deaths_alone: int = 0

    @property
    def ids(self) -> list[str]:
        return [f"{self.name}.{place}" for place in range(self.prepared.num_choices)]

    @property
    def interactive(self) -> bool:
        return self.shard.ticket.interactive

    def ordered_outputs(self) -> list[Output]:
        return [self.outputs[place] for place in range(self.prepared.num_choices)]


class Flight:
    """All lines in hand, by name. `pump` sends what may be sent now."""

    def __init__(self, sink: Sink, *, weigh: Callable[[Prepared], float]) -> None:
        self._sink = sink
        self._weigh = weigh
        self._names = count()
        self._lines: dict[str, Flying] = {}
        self._ready: deque[Flying] = deque()
        self._inside: set[str] = set()
        self._suspects: list[list[Flying]] = []
        self._on_trial = False
        self.weight = 0.0
        self.num_interactive = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def num_inside(self) -> int:
        """Lines that the engine has."""
        return len(self._inside)

    def add(self, shard: RunningShard, lines: Iterable[Prepared]) -> None:
        """Take on lines of a shard."""
        for prepared in lines:
            name = str(next(self._names))
            flying = Flying(name=name, shard=shard, prepared=prepared, weight=self._weigh(prepared))
            self._lines[name] = flying
            self.weight += flying.weight
            self.num_interactive += flying.interactive
            self._ready.append(flying)

    def pump(self) -> None:
        """Send what is ready; while there are suspects, one group of them at a time and nothing else."""
        if self._on_trial and self._inside:
            return
        self._on_trial = bool(self._suspects)
        if self._on_trial:
            self._send(self._suspects.pop())
        else:
            self._send(self._ready)
            self._ready.clear()

    def take(self, outputs: Iterable[Output]) -> list[Flying]:
        """The lines that these outputs complete."""
        done = []
        for output in outputs:
            name, _, place = output.id.partition(".")
            flying = self._lines.get(name)
            if flying is None or output.finish_reason is None:
                continue  # Aborted meanwhile.
            flying.outputs[int(place)] = output
            if len(flying.outputs) == flying.prepared.num_choices:
                self._forget(flying)
                done.append(flying)
        return done

    def drop(self, shard: RunningShard) -> None:
        """Let a shard's lines go, and abort those that the engine has."""
        gone = [flying for flying in self._lines.values() if flying.shard is shard]
        for flying in gone:
            if flying.name in self._inside:
                self._sink.abort(flying.ids)
            self._forget(flying)

    def engine_died(self) -> list[Flying]:
        """The engine is gone, and with it all that was inside; what it answered in part runs again.

        Returns lines that are given up, because the engine died of them.
        """
        suspects = sorted((self._lines[name] for name in self._inside), key=lambda flying: int(flying.name))
        self._inside.clear()
        for flying in suspects:
            flying.outputs.clear()
        if len(suspects) == 1:
            (culprit,) = suspects
            culprit.deaths_alone += 1
            if culprit.deaths_alone >= DEATHS_ALONE:
                self._forget(culprit)
                return [culprit]
        middle = (len(suspects) + 1) // 2
        self._suspects += [half for half in (suspects[middle:], suspects[:middle]) if half]
        return []

    def _send(self, lines: Iterable[Flying]) -> None:
        """Give the engine those of the lines that are still wanted."""
        requests: list[Request] = []
        for flying in lines:
            if flying.name in self._lines:
                self._inside.add(flying.name)
                requests += flying.prepared.requests(flying.name, -1 if flying.interactive else 0)
        self._sink.add(requests)

    def _forget(self, flying: Flying) -> None:
        del self._lines[flying.name]
        self._inside.discard(flying.name)
        self.weight -= flying.weight
        self.num_interactive -= flying.interactive
