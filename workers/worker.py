"""The worker: one loop that takes shards, keeps the engine full with their lines, and stores what comes back.

    take tickets -> intake (threads) -> flight -> engine (process) -> answers -> ledger -> store, seal, RQ

Everything slow is elsewhere, and everything that changes is changed here, in one thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from redis.exceptions import OutOfMemoryError, RedisError

from ..engine.errors import EngineError
from ..engine.request import Load, ModelInfo
from ..jobs.backend import Backend, connect
from ..jobs.errors import PressrunError, SettingsError, StoreUnavailable
from ..jobs.garbage import settle
from ..jobs.generation import NO_DEFAULTS, Defaults
from ..jobs.lines import never_ran
from ..jobs.metrics import publish
from ..jobs.records import Claim, LineResult, ModelCard
from ..jobs.settings import Settings
from .appetite import LOADS, Appetite
from .defaults import load_defaults
from .engine_child import Engine
from .engine_keeper import EngineKeeper
from .engine_process import EngineDied, EngineProcess, EngineStartError
from .engines import engine_of
from .flight import Flight
from .housekeeping import Housekeeper
from .intake import Intake, Taken
from .ledger import Ledger
from .live import LiveDesk
from .meter import Meter
from .metrics import WorkerMetrics
from .online import OnlineRequest
from .parsing.style import style_of
from .patience import PATIENCE_S, patiently
from .prompts import Prepared, Prompts, Tokenizer
from .responses import result_of
from .rq_desk import RqDesk
from .runs import Flying
from .shard import RunningShard, Ticket
from .spans import LineSpans
from .tempo import Tempo
from .waker import Waker

T = TypeVar("T")
log = logging.getLogger(__name__)

GRACE_S = 20.0  # How long lines in hand may still run after the first signal to stop.
START_S = 60.0  # How long a starting worker waits for Redis.
LAST_WORDS_S = 5.0  # How long a stopping worker waits for Redis.
SAME_SIGNAL_S = 1.0  # Ctrl-C and a supervisor's SIGTERM are one wish, if they come together.
TICK_S = 0.02
LOOK_S = 1.0
BEAT_S = 10.0
CARD_S = 2.0  # The card tells the measured speed, which ETAs are made of.
MOST_TICKETS = 512


class PressrunWorker(RqDesk):
    """Runs shards until told to stop. `work` is the loop; it returns True after a clean stop."""

    def __init__(
        self,
        backend: Backend,
        engine: EngineProcess,
        tokenizer: Tokenizer,
        *,
        name: str | None = None,
        grace_s: float = GRACE_S,
        defaults: Defaults = NO_DEFAULTS,
    ) -> None:
        settings = backend.settings
        name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        super().__init__(backend.redis, name=name, model=settings.model_name, lease_s=settings.lease_s)
        self.backend = backend
        self.engine = engine
        self.tokenizer = tokenizer
        self.grace_s = grace_s
        self.defaults = defaults
        self.waker = Waker()
        self.appetite = Appetite()
        self.tempo = Tempo()
        self.meter = Meter()
        self.metrics = WorkerMetrics()
        self.spans = LineSpans(backend.traces, worker=name, share=settings.traced_lines)
        self.flight = Flight(engine, weigh=self.appetite.weight, max_line_s=settings.max_line_seconds)
        self.keeper = EngineKeeper(engine, self.flight, self.waker, self.metrics, stall_s=settings.engine_stall_s)
        self.ledger = Ledger(backend, self.waker, self._patiently, self.metrics)
        self.intake: Intake | None = None
        self.live: LiveDesk | None = None
        self._closing = threading.Event()
        self._housekeeper: threading.Thread | None = None
        self._stop_at: float | None = None
        self._cold = False
        self._suspended = False
        self._due: dict[str, float] = {}
        self._card: ModelCard | None = None

    # From birth to death

    def work(self, burst: bool = False, logging_level: str | None = "INFO", *args: Any, **options: Any) -> bool:
        """Run shards until a signal. Raises EngineStartError, EngineDied or StoreUnavailable if that cannot go on."""
        if burst or args or options:
            raise SettingsError("a Pressrun worker takes none of RQ's options: no burst mode and no scheduler")
        patiently(lambda: self.bootstrap(logging_level))
        self._install_signal_handlers()
        try:
            while not self._finished():
                self._turn()
        finally:
            try:
                self._put_all_down()
            finally:
                self.engine.stop()
                self.teardown()  # type: ignore[no-untyped-call]
                self.waker.close()
        return True

    def _turn(self) -> None:
        """One round of the loop; it waits only for the engine, and not for long."""
        for part in (
            self._hold,  # First: after a long pause most else is not this worker's to say.
            self._look_around,
            self._take_tickets,
            self._take_lines,
            self._make_room,
            self._hear_engine,
            self._commit,
            self._finish_sealed,
            self._hand_back_stopped,
        ):
            part()
            self._attend()

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        in_hand = len(self.ledger) + sum(len(part) for part in (self.intake, self.live) if part is not None)
        return self._cold or not in_hand or time.monotonic() >= self._stop_at

    def _put_all_down(self) -> None:
        """Store what is finished, and hand the rest back so that others need not wait for a lease."""
        self._stop_at = self._stop_at or time.monotonic()
        self._cold = True
        self._closing.set()
        if self.live is not None:
            self.live.close()
        if self.intake is not None:
            self.intake.close()
            for taken in self.intake.ready():
                self._receive(taken)
        self._let_go_of(self.ledger.commit(now=True))
        self.ledger.close()
        self._finish_sealed()
        left = list(self.ledger)
        for shard in left:
            self._hand_back(shard, count_attempt=self.keeper.worn_out)
        if left:
            log.info("%d unfinished shards are handed back", len(left))
        if self._housekeeper:
            self._housekeeper.join()
        self._patiently(lambda: self.backend.store.forget_model(self.name))

    # Signals

    def _install_signal_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            super()._install_signal_handlers()  # type: ignore[no-untyped-call]

    def request_stop(self, signum: Any = None, frame: Any = None) -> None:
        """Finish what is in hand within the grace period. Asked again, hand it back now."""
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now + self.grace_s
            self._stop_requested = True
            self._asked_to_stop_at = now
        elif now - self._asked_to_stop_at > SAME_SIGNAL_S:
            self._cold = True
        self.waker.wake()

    # The engine

    def _hear_engine(self) -> None:
        busy, tokens = len(self.flight) > 0, 0
        tick = min(TICK_S, self.backend.settings.commit_interval_s / 2)
        heard = self.keeper.hear(0.0 if self.flight.num_ended else tick)
        for flying in heard.complete:
            outputs = flying.outputs
            for output in () if flying.is_twin else outputs:
                self.appetite.learn(len(flying.prepared.prompts[0]), len(output.token_ids))
            if isinstance(flying.shard, OnlineRequest):
                tokens += self._answer_online(flying)
                continue
            result = result_of(flying.prepared, outputs, self.tokenizer)
            self.spans.tell(flying, result)
            tokens += result.usage.input_tokens + result.usage.output_tokens
            self.ledger.enter(flying.shard, result)
            self._attend()
        self.meter.note(time.monotonic(), busy=busy, tokens=tokens)
        for flying, code in heard.given_up:
            given_up = never_ran(flying.prepared.line, code)
            if isinstance(flying.shard, OnlineRequest):
                self._answer_online(flying)
            else:
                self.spans.tell(flying, given_up)
                self.ledger.enter(flying.shard, given_up)
        if self.intake is None and self.engine.info is not None and self.engine.load is not None:
            self._open_for_business(self.engine.info, self.engine.load)

    def _open_for_business(self, info: ModelInfo, load: Load) -> None:
        """The model is loaded for the first time: announce it, and begin to take shards."""
        settings = self.backend.settings
        self._card = ModelCard(
            id=settings.model_name,
            max_model_len=info.max_model_len,
            created=int(time.time()),
            worker=self.name,
            default_sampling=self.defaults.shown(),
        )
        style = style_of(settings, self.tokenizer)
        prompts = Prompts(self.tokenizer, info, settings.model_name, style, self.defaults)
        live = LiveDesk(self.backend, prompts, self.waker, worker=self.name)
        self._patiently(lambda: live.announce(LOADS * load.num_rows))
        live.start()
        self.live = live
        self._touch_model()
        self.intake = Intake(self.backend, prompts, self.waker, self._patiently)
        # Validation asks which models are served, so it must not begin before ours is.
        keep_house = Housekeeper(self.backend, self.metrics).run
        self._housekeeper = threading.Thread(target=keep_house, args=(self._closing,), name="housekeeper", daemon=True)
        self._housekeeper.start()

    # Online requests

    def _make_room(self) -> None:
        load = self.engine.load
        if self.live is None:
            return
        self.tempo.note(online=len(self.live) > 0)
        if self._stop_at is not None or self._suspended:
            self.live.make_room(0)
        elif load is not None:
            self.live.make_room(LOADS * load.num_rows)

    def _attend(self) -> None:
        """Send what is ready to run, and let go what nobody waits for. Somebody waits, so all else is interrupted."""
        if self.live is None or not self.live.has_news:
            return
        for request, prepared in self.live.ready():
            self.flight.add(request, [prepared])
        for request in self.live.to_stop():
            self.flight.drop(request)
        self.keeper.pump()

    def _answer_online(self, flying: Flying) -> int:
        """The tokens that it took."""
        assert self.live is not None
        self.live.answer(flying)
        self.spans.tell_online(flying)
        return sum(map(len, flying.prepared.prompts)) + sum(len(output.token_ids) for output in flying.outputs)

    # Shards

    def _hold(self) -> None:
        self._let_go_of(self.ledger.hold(() if self.intake is None else self.intake.claims()))

    def _commit(self) -> None:
        self._let_go_of(self.ledger.commit())

    def _take_lines(self) -> None:
        if self.intake is None:  # Empty, it is false.
            return
        for taken in self.intake.ready():
            self._receive(taken)
        self.intake.settle(shard.ticket for shard in self.ledger if self._is_doubtful(shard))

    def _take_tickets(self) -> None:
        load = self.engine.load
        if self.intake is None or load is None or self._stop_at is not None or self._suspended:
            return
        lines = self.backend.settings.shard_lines
        in_hand = self.flight.num_batch + self.intake.num_batch * lines
        wanted = self.appetite.wanted(load, in_hand, self.flight.weight)
        urgent = self.appetite.wanted(load, self.flight.num_interactive + self.intake.num_interactive, 0.0)
        if not self._is_due("take", TICK_S):
            return
        counts = min(urgent, MOST_TICKETS), min(-(-wanted // lines), MOST_TICKETS)
        tickets = self._tell(lambda: self.take(*counts)) if any(counts) else []
        if tickets:
            self._due["take"] = 0.0
            self.intake.submit(tickets)
        elif tickets is None:
            self._due["take"] = time.monotonic() + LOOK_S

    def _receive(self, taken: Taken) -> None:
        """A ticket has come back from intake."""
        if taken.error is not None:
            self._fail_to_take(taken.ticket, taken.claim, taken.error)
            return
        if taken.claim is None:
            self._tell(lambda: self.succeed([taken.ticket]))
            return
        earlier = self.ledger.find(taken.ticket.key)
        if earlier is not None:
            self._let_go(earlier)  # Queued again while it was here: the newer claim has it.
        shard = self.ledger.open(taken.claim, taken.ticket, len(taken.lines))
        for line in taken.lines:
            if isinstance(line, LineResult):
                self.ledger.enter(shard, line)
        self.flight.add(shard, (line for line in taken.lines if isinstance(line, Prepared)))

    def _is_doubtful(self, shard: RunningShard) -> bool:
        """Whether this shard might still turn out to be one that kills workers."""
        return not shard.begun and time.monotonic() - shard.since < self.backend.settings.lease.hold

    def _fail_to_take(self, ticket: Ticket, claim: Claim | None, error: Exception) -> None:
        log.error("batch %s: shard %d cannot be run", *ticket.key, exc_info=error)
        self._tell(lambda: self.fail(ticket, error))
        if claim is not None and isinstance(error, StoreUnavailable):
            # Its lines wait for a blob store that is away, and must not fail for that.
            self._patiently(lambda: self.backend.shards.release(claim, count_attempt=False))
        # Else its lease is left to lapse, so that it is not tried again at once, nor for ever.

    def _let_go_of(self, lost: list[RunningShard]) -> None:
        for shard in lost:
            log.info("batch %s: shard %d is no longer this worker's", *shard.key)
            self.metrics.lost_leases.inc()
            self._let_go(shard)

    def _let_go(self, shard: RunningShard) -> None:
        """Forget a shard that is no longer ours."""
        self.flight.drop(shard)
        self.ledger.let_go(shard)
        self._tell(lambda: self.put_down([shard.ticket]))

    def _hand_back(self, shard: RunningShard, *, count_attempt: bool) -> None:
        """Give up a shard that is ours. RQ's job goes first: the store may have the shard queued again at once."""
        self._let_go(shard)
        self.ledger.release(shard, count_attempt=count_attempt)

    def _finish_sealed(self) -> None:
        sealed = self.ledger.sealed()
        if sealed:
            self._tell(lambda: self.succeed([shard.ticket for shard in sealed]))

    def _hand_back_stopped(self) -> None:
        """`rq stop-job` stops an execution; the shard waits for its next turn. To end a batch, cancel it."""
        wanted = self.stops_wanted()
        for shard in self.ledger if wanted else ():
            if shard.ticket.execution.id in wanted and shard.stage == "running":
                log.warning("batch %s: shard %d is stopped by request and handed back", *shard.key)
                self._hand_back(shard, count_attempt=True)

    # Now and then

    def _look_around(self) -> None:
        if self._is_due("look", LOOK_S):
            self._suspended = bool(self._tell(self.suspended))
        if self._is_due("beat", min(self.backend.settings.lease_s / 3, BEAT_S)):
            self._tell(lambda: self.beat([shard.ticket for shard in self.ledger]))
        if self._is_due("card", CARD_S):
            self._touch_model()
        if self.should_run_maintenance_tasks:
            self._tell(self.run_maintenance_tasks)

    def _touch_model(self) -> None:
        if self._card is not None:
            card = replace(self._card, tokens_per_s=round(self.meter.tokens_per_s, 1))
            self._tell(lambda: self.backend.store.touch_model(card))
            self._publish_metrics()

    def _publish_metrics(self) -> None:
        """Beside the card, so that both count for as long."""
        self.metrics.tokens_per_s.set(self.meter.tokens_per_s)
        self._tell(lambda: publish(self.backend.store, self.name, self.metrics.registry))

    def _is_due(self, name: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + interval
        return True

    def _patiently(self, action: Callable[[], T]) -> T:
        """Wait for Redis while there is nothing else to do; a worker that stops waits for no one."""
        return patiently(action, patience_s=self._patience_s)

    def _tell(self, action: Callable[[], T]) -> T | None:
        """The same for what others see of this worker and for taking more: None, at once, while Redis is full.

        What is in hand must go on, because only that makes room again.
        """
        try:
            return patiently(action, patience_s=self._patience_s, for_room=False)
        except OutOfMemoryError as error:
            log.warning("Redis' memory is full: %s", error)
            return None

    def _patience_s(self) -> float:
        return LAST_WORDS_S if self._stop_at is not None else PATIENCE_S


def run(settings: Settings, model_dir: Path | None = None) -> int:
    """Work until told to stop; the exit code. `model_dir` is the model's folder (None with the echo engine).

    Raises SettingsError for what no second try would mend.
    """
    factory, load_tokenizer = engine_of(settings, model_dir)
    return run_with(settings, factory, load_tokenizer, model_dir=model_dir)


def run_with(
    settings: Settings,
    factory: Callable[[], Engine],
    load_tokenizer: Callable[[], Tokenizer],
    *,
    model_dir: Path | None = None,
    grace_s: float = GRACE_S,
) -> int:
    """Work with a given engine until told to stop; the exit code. Raises SettingsError as `run` does."""
    defaults = load_defaults(settings, model_dir)
    engine = EngineProcess(factory)
    try:
        backend = connect(settings)
        engine.start()  # The model loads while this process gets ready too.
        tokenizer = load_tokenizer()
        worker = patiently(
            lambda: PressrunWorker(backend, engine, tokenizer, grace_s=grace_s, defaults=defaults),
            patience_s=lambda: START_S,
        )
        settle()
        worker.work(logging_level=settings.log_level.upper())
    except (PressrunError, EngineError, EngineStartError, EngineDied, RedisError) as error:
        log.error("the worker ends: %s", error)
        return 1
    finally:
        engine.stop()
    backend.close()
    return 0
