"""The lines that are in the engine, or ready to be: sending, gathering, aborting, and finding out which line kills it.

Lines that are bound to get the same answer share a run.

When the engine dies, the lines that were in it are tried again in halves, a half at a time and nothing beside it. The
half that kills it again is halved in turn, until the one line that does it is alone.
Knows nothing of processes or of Redis.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Protocol

from ..engine.request import Output, Request
from .deadlines import Deadlines
from .online import OnlineRequest
from .prompts import Prepared
from .runs import Flying, Run
from .shard import RunningShard
from .twins import Answer, Answers, Twin

DEATHS_ALONE = 2  # The first may be an accident.
TWIN_SHARE = 1 / 16  # Of a line's work, so that a batch of nothing but twins is not taken in whole.
# In one go: leases must not lapse, and online requests not wait, while the answers of thousands are written.
MOST_ENDED = 64
LATE = Answer(error="line_timeout")


class Sink(Protocol):
    """Where requests go."""

    def add(self, requests: Sequence[Request]) -> None: ...
    def abort(self, ids: Iterable[str]) -> None: ...


class Flight:
    """All lines in hand. `pump` sends what may be sent now, `take` gives what has ended.

    A line waits for the run of a twin that is on its way, and takes the answer of one that has just ended. A run goes
    on for as long as one of its lines is wanted, whichever it was begun for.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        weigh: Callable[[Prepared], float],
        max_line_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._weigh = weigh
        self._names = count()
        self._lines: dict[Flying, Run] = {}
        self._runs: dict[str, Run] = {}
        self._twins: dict[Twin, Run] = {}
        self._answers = Answers()
        self._deadlines = Deadlines(max_line_s, clock=clock)
        self._ended: deque[Flying] = deque()
        self._ended_first: deque[Flying] = deque()  # Those that somebody waits for.
        self._ready: deque[Run] = deque()
        self._inside: set[str] = set()
        self._suspects: list[list[Run]] = []
        self._on_trial = False
        self.weight = 0.0
        self.num_interactive = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def num_batch(self) -> float:
        """Lines of batches, as far as they are work: what shares another's run is next to none.

        Those that have ended count until they are taken, or a quick engine would be given ever more.
        """
        num_runs = len(self._runs) - self.num_interactive
        num_lines = len(self._lines) - self.num_interactive
        return num_runs + len(self._ended) + (num_lines - num_runs) * TWIN_SHARE

    @property
    def num_inside(self) -> int:
        """Runs that the engine has."""
        return len(self._inside)

    @property
    def num_ended(self) -> int:
        """Lines that `take` has to give without any output."""
        return len(self._ended_first) + len(self._ended)

    def add(self, shard: RunningShard | OnlineRequest, lines: Iterable[Prepared]) -> None:
        """Take on lines of a shard, or the one of an online request."""
        for prepared in lines:
            flying = Flying(shard=shard, prepared=prepared)
            known = self._answers.find(flying.twin)
            if known is None:
                self._board(flying)
            else:
                flying.end(known, is_twin=True)
                self._note_ended([flying])

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
        """Lines that have ended: with these outputs, with earlier ones, or with an answer that was known."""
        for output in outputs:
            name, _, place = output.id.partition(".")
            run = self._runs.get(name)
            if run is None:
                continue  # Aborted meanwhile.
            if run.take(int(place), output):
                self._note_ended(self._end(run, run.answer()))
        return [(self._ended_first or self._ended).popleft() for _ in range(min(MOST_ENDED, self.num_ended))]

    def expire(self) -> list[Flying]:
        """Give up the lines that have had their time in the engine."""
        overdue = self._deadlines.overdue()
        for flying in overdue:
            self._leave(flying)
            flying.end(LATE, is_twin=False)
        return overdue

    def drop(self, shard: RunningShard | OnlineRequest) -> None:
        """Let the lines of a shard or an online request go, and abort what the engine runs for them alone."""
        for flying in [flying for flying in self._lines if flying.shard is shard]:
            self._leave(flying)

    def engine_died(self, code: str = "engine_crashed") -> list[Flying]:
        """The engine is gone, and with it all that was inside; what it answered in part runs again, but for streams
        that somebody has heard a part of: these end with `code`.

        Returns lines that are given up with `code`, because the engine died of them.
        """
        inside = sorted((self._runs[name] for name in self._inside), key=lambda run: int(run.name))
        self._inside.clear()
        for run in inside:
            if run.is_heard:
                self._note_ended(self._end(run, Answer(error=code)))
        suspects = [run for run in inside if run.name in self._runs]
        for run in suspects:
            run.begin_again()
            for flying in run.lines:
                self._deadlines.forget(flying)  # What another line may have done is not to cost this one its time.
        if len(suspects) == 1:
            (culprit,) = suspects
            culprit.deaths_alone += 1
            if culprit.deaths_alone >= DEATHS_ALONE:
                return self._end(culprit, Answer(error=code))
        middle = (len(suspects) + 1) // 2
        self._suspects += [half for half in (suspects[middle:], suspects[:middle]) if half]
        return []

    def _note_ended(self, ended: Iterable[Flying]) -> None:
        for flying in ended:
            (self._ended_first if flying.interactive else self._ended).append(flying)

    def _board(self, flying: Flying) -> None:
        """Let a line wait for the run of its twin, or for a run of its own."""
        run = None if flying.twin is None else self._twins.get(flying.twin)
        if run is None:
            run = self._open(flying)
        run.take_on(flying)
        self._lines[flying] = run
        self.num_interactive += flying.interactive
        if run.name in self._inside:
            self._deadlines.start(flying)

    def _open(self, flying: Flying) -> Run:
        prepared = flying.prepared
        run = Run(
            name=str(next(self._names)),
            prepared=prepared,
            twin=flying.twin,
            interactive=flying.interactive,
            weight=self._weigh(prepared),
            listener=flying.listener,
        )
        self._runs[run.name] = run
        if run.twin is not None:
            self._twins[run.twin] = run
        self.weight += run.weight
        self._ready.append(run)
        return run

    def _send(self, runs: Iterable[Run]) -> None:
        """Give the engine those of the runs that are still wanted."""
        requests: list[Request] = []
        for run in runs:
            if run.name not in self._runs:
                continue
            self._inside.add(run.name)
            for flying in run.lines:
                self._deadlines.start(flying)
                if isinstance(flying.shard, OnlineRequest):
                    flying.shard.moments.sent()
            requests += run.prepared.requests(run.name, -1 if run.interactive else 0)
        self._sink.add(requests)

    def _end(self, run: Run, answer: Answer) -> list[Flying]:
        """The run's lines, ended: the first of them as the one that it was for."""
        twins_answer = answer
        if run.twin is not None:
            twins_answer = run.for_twins(answer)
            self._answers.keep(run.twin, twins_answer)
        self._inside.discard(run.name)
        first, *twins = ended = list(run.lines)
        for flying in ended:
            self._leave(flying)
        first.end(answer, is_twin=False)
        for flying in twins:
            flying.end(twins_answer, is_twin=True)
        return ended

    def _leave(self, flying: Flying) -> None:
        """Take a line off its run, and stop the run that was for nobody else."""
        run = self._lines.pop(flying)
        del run.lines[flying]
        self._deadlines.forget(flying)
        self.num_interactive -= flying.interactive
        if not run.lines:
            self._close(run)

    def _close(self, run: Run) -> None:
        if run.name in self._inside:
            self._inside.discard(run.name)
            self._sink.abort(run.ids)
        del self._runs[run.name]
        if run.twin is not None:
            del self._twins[run.twin]
        self.weight -= run.weight
