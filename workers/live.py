"""Online requests in a worker: taken from the line, made ready, stopped when their client is gone, and answered.

A thread waits for requests and for those to stop, says that the worker lives, and hands on to a few that make prompts;
the main loop is woken and finds what is ready. Answers leave through the outbox. Knows nothing of batches or of RQ.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from redis.exceptions import RedisError

from ..jobs.backend import Backend
from ..jobs.errors import UserError
from ..jobs.lines import never_ran, refused
from ..jobs.live import BEAT_S, Live
from ..jobs.records import Line, LineResult
from .online import OnlineRequest
from .outbox import Outbox
from .prompts import Prepared, Prompts
from .runs import Flying
from .streaming import AnswerStream
from .tokenizing import URLS, tokenizer_result
from .waker import Waker

T = TypeVar("T")
log = logging.getLogger(__name__)
NUM_THREADS = 2
RETRY_S = 0.2
MOST_TAKEN = 64
CLOSE_S = 3.0


class LiveDesk:
    """All online requests in hand. Its methods are for the main loop, and none of them waits but `close`."""

    def __init__(self, backend: Backend, prompts: Prompts, waker: Waker, *, worker: str) -> None:
        self._live: Live = backend.live
        self._model = backend.settings.model_name
        self._worker = worker
        self._prompts = prompts
        self._waker = waker
        self._most = 0
        self._in_hand: dict[str, OnlineRequest] = {}
        self._ready: SimpleQueue[tuple[OnlineRequest, Prepared]] = SimpleQueue()
        self._to_stop: SimpleQueue[OnlineRequest] = SimpleQueue()
        self._number = 0
        self._looks = True  # There may be some in line for whom the bell rings no more.
        self._beat_at = 0.0
        self._was_taking = False
        self._is_full = False
        self._closing = threading.Event()
        self._outbox = Outbox(
            self._live,
            prompts.tokenizer,
            model=self._model,
            worker=worker,
            on_dead=self._stop_all_of,
            sampling=prompts.defaults.sampling,
        )
        self._pool = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="online")
        self._thread = threading.Thread(target=self._run, name="online-requests", daemon=True)

    def __len__(self) -> int:
        return len(self._in_hand)

    # For the main loop

    def announce(self, most: int) -> None:
        """Say that the model is served here, with room for so many requests. May be repeated until it succeeds."""
        self._most = most
        self._live.open(self._model)
        self._beat()

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    def make_room(self, most: int) -> None:
        """Have at most so many requests in hand; with 0 none is taken any more."""
        self._most = most

    @property
    def has_news(self) -> bool:
        """Whether there is something ready to run, or to be stopped."""
        return not (self._ready.empty() and self._to_stop.empty())

    def ready(self) -> list[tuple[OnlineRequest, Prepared]]:
        """Requests that are to run."""
        ready = []
        for request, prepared in _drained(self._ready):
            if request.stopped:
                self._forget(request)
                continue
            ready.append((request, prepared))
        return ready

    def to_stop(self) -> list[OnlineRequest]:
        """Requests that nobody waits for any more; they are forgotten."""
        stopped = _drained(self._to_stop)
        for request in stopped:
            self._forget(request)
        return stopped

    def answer(self, flying: Flying) -> None:
        """A request has run, or is given up."""
        request = flying.shard
        assert isinstance(request, OnlineRequest)
        request.moments.hear(flying.outputs)
        if flying.error is None:
            self._outbox.answer(request, flying.prepared, flying.outputs)
        else:
            self._outbox.result(request, never_ran(flying.prepared.line, flying.error))
        self._forget(request)

    def close(self) -> None:
        """Leave what has not ended to other workers."""
        self._closing.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        for request in list(self._in_hand.values()):
            self._outbox.put_down(request)
        self._outbox.close(CLOSE_S)
        try:
            self._live.leave(self._model, self._worker)
        except RedisError as error:
            log.warning("the worker leaves without a word: %s", error)

    # The thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._turn()
            except RedisError as error:
                log.warning("online requests wait for Redis: %s", error)
                self._closing.wait(RETRY_S)
            except Exception:
                # The edge of a thread: something in the line that cannot be read is not to end the road for all.
                log.exception("an online request could not be taken")
                self._closing.wait(RETRY_S)

    def _turn(self) -> None:
        room = self._most - len(self._in_hand)
        self._beat()
        if room <= 0:
            self._is_full = True
            to_stop = self._live.wait(self._model, self._worker, BEAT_S / 2)
            self._is_full, self._looks = False, True
        else:
            to_stop = self._take(min(room, MOST_TAKEN))
        if to_stop:
            self._stop(self._in_hand.get(to_stop))

    def _take(self, most: int) -> str | None:
        """Take what stands in line, or comes soon; or a request to stop, whose name is returned."""
        to_stop, where = None, (self._model, self._worker)
        if self._looks:
            calls = self._live.take(*where, self._number, most)
        else:
            to_stop, calls = self._live.wait_and_take(*where, BEAT_S / 2, self._number, most)
        self._number += 1  # Only now: a taking whose answer was lost is repeated.
        self._looks = bool(calls)
        for call in calls:
            request = OnlineRequest(call=call, on_tokens=self._outbox.tokens)
            self._in_hand[request.name] = request
            self._pool.submit(self._prepare, request)
        return to_stop

    def _beat(self) -> None:
        taking, now = self._most > 0, time.monotonic()
        if now >= self._beat_at or taking != self._was_taking:
            self._live.beat(self._model, self._worker, taking=taking)
            self._beat_at, self._was_taking = now + BEAT_S, taking
            for api in self._live.dead(list({request.call.api for request in list(self._in_hand.values())})):
                self._stop_all_of(api)

    def _stop(self, request: OnlineRequest | None) -> None:
        if request is not None:
            request.stopped = True
            self._to_stop.put(request)
            self._waker.wake()

    def _stop_all_of(self, api: str) -> None:
        """An API process is dead, and with it all who waited."""
        for request in list(self._in_hand.values()):
            if request.call.api == api:
                self._stop(request)

    def _forget(self, request: OnlineRequest) -> None:
        self._in_hand.pop(request.name, None)
        if self._is_full and self._most and not self._closing.is_set():
            self._is_full = False
            self._pool.submit(self._nudge)

    def _nudge(self) -> None:
        """Have the thread look, which waits for no bell: there is room again."""
        try:
            self._live.stop(self._model, self._worker, "")
        except RedisError as error:
            log.info("the line is looked at a little later: %s", error)

    # Threads that make prompts

    def _prepare(self, request: OnlineRequest) -> None:
        call = request.call
        line = Line(index=0, custom_id=call.id, url=call.url, body=call.body)
        try:
            prepared = self._answered_or_ready(line)
        except Exception:
            # The edge of a thread: one request must not be forgotten in silence.
            log.exception("request %s could not be prepared", request.name)
            prepared = refused(line, UserError("The request could not be prepared.", status=500, code="server_error"))
        if isinstance(prepared, LineResult):
            self._outbox.result(request, prepared)
            self._forget(request)
        else:
            request.stream = AnswerStream(prepared, self._prompts.tokenizer) if prepared.body.stream else None
            request.moments.ready()
            self._ready.put((request, prepared))
            self._waker.wake()

    def _answered_or_ready(self, line: Line) -> Prepared | LineResult:
        if line.url in URLS:
            return tokenizer_result(line, self._prompts)
        return self._prompts.prepare_online(line)


def _drained(queue: SimpleQueue[T]) -> list[T]:
    found: list[T] = []
    try:
        while True:
            found.append(queue.get_nowait())
    except Empty:
        return found
