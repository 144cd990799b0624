"""Online requests of this API process: put in line, their answers handed to who waits, asked again where a worker dies.

One coroutine reads what all workers say to this process, and one looks now and then whether anybody still works on what
is waited for. Used from the event loop only. The other end is `workers/live.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anyio import CapacityLimiter, to_thread
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..jobs.backend import Backend
from ..jobs.errors import NotFound, RateLimited, Unavailable, UserError
from ..jobs.generation import NEUTRAL
from ..jobs.ids import new_id
from ..jobs.live import API_TTL_S, Call, Place, api_key, messages_key
from ..jobs.traces import traceparent_of_request
from ..jobs.trips import Trip
from .chunks import Rows

log = logging.getLogger("pressrun.api")

LOOK_S = 0.5
WEIGHTS_S = 5.0  # Until another weight of a tenant counts for its turns.
BLOCK_MS = 1000
SIGN_OF_LIFE_S = 1.0
MOST_MESSAGES = 64
MOST_ATTEMPTS = 3  # Of a request that nothing was heard of: what kills its workers is not to kill all of them.
RETRY_S = 0.2
NUM_THREADS = 16


class Pending:
    """One online request, as its client's coroutine sees it."""

    def __init__(self, call: Call, place: Place) -> None:
        self.call = call
        self.place = place
        self.rows = Rows()
        self.is_begun = False  # Something of its answer may have been sent: it cannot be asked again.
        self.is_asked = False
        self.result: tuple[int, Any] | None = None
        self.usage: dict[str, Any] | None = None
        self.asked_at = self.heard_at = 0.0  # The last try, and the first word of it.
        self.phases: dict[str, float] = {}
        self.sampling = NEUTRAL  # How its worker draws what it says nothing of.
        self.error: UserError | None = None
        self.has_ended = False
        self.timer: asyncio.TimerHandle | None = None
        self._num_heard = 0
        self._news = asyncio.Event()

    async def wait(self) -> None:
        """Until there is more of it, or its end. Raises the UserError that it ends in, if nothing came before."""
        await self._news.wait()
        self._news.clear()
        if self.error is not None and not self.is_begun:
            raise self.error

    def hear(self, number: int, kind: str, content: Any) -> None:
        """A message; one that comes twice counts once, and one that is missing is missed."""
        if self.has_ended or number < self._num_heard:
            return
        if not number:
            self.heard_at = time.monotonic()
        self._num_heard += 1
        if number >= self._num_heard:
            self.fail(Unavailable("A part of the answer was lost. Try again.", code="stream_lost", retry_after_s=1))
        elif kind == "rows":
            self.is_begun = True
            for row in content:
                self.rows.add(*row)
        elif kind == "end":
            self.usage, self.has_ended = content, True
        else:
            self._take_result(*content)
        self._news.set()

    def _take_result(self, status: int, body: Any) -> None:
        """A whole answer, or an error in place of one or of the rest."""
        self.has_ended = True
        if status == 200:
            self.result = status, body
            return
        fields = body["error"]
        self.error = UserError(fields["message"], param=fields["param"], code=fields["code"], status=status)

    def fail(self, error: UserError) -> None:
        """It ends here."""
        if not self.has_ended:
            self.error, self.has_ended = error, True
            self._news.set()

    def begin_again(self) -> None:
        """What follows is of another try."""
        self.call = replace(self.call, attempt=self.call.attempt + 1)
        self._num_heard = 0
        self.asked_at = time.monotonic()


class Calls:
    """All online requests of this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._settings = backend.settings
        self._live = backend.live
        self._name = new_id("api_")
        self._pending: dict[str, Pending] = {}
        self._threads = CapacityLimiter(NUM_THREADS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._doubted: set[tuple[str, int]] = set()
        self._is_reading = False
        self._signed_at = 0.0
        self._weights: dict[str, float] = {}
        self._weighed_at = -WEIGHTS_S

    @property
    def keep_alive_s(self) -> float | None:
        """How long a stream may be silent; None: as long as it is."""
        return self._settings.stream_keep_alive_s or None

    async def ask(
        self, url: str, model: str, body: dict[str, Any], *, tenant: str, tokens: int, priority: int
    ) -> Pending:
        """Put a request in line. Raises UserError where it cannot be served now. Whoever asks calls `end` too."""
        trace = traceparent_of_request()
        call = Call(id=new_id("live_"), attempt=1, api=self._name, url=url, model=model, body=body, trace=trace)
        price = max(tokens, 1) / self._weights.get(tenant, 1.0)
        pending = Pending(call, Place(tenant=tenant, priority=priority, price=price))
        self._read_on()
        self._pending[call.id] = pending  # Before it is asked: the answer may be quick.
        pending.asked_at = time.monotonic()
        try:
            await self._in_thread(lambda: self._begin(pending, tokens))
        except BaseException:
            self.end(pending)
            raise
        pending.is_asked = True
        timeout_s = self._settings.online_timeout_s
        pending.timer = asyncio.get_running_loop().call_later(timeout_s, pending.fail, _too_late(timeout_s))
        return pending

    def end(self, pending: Pending) -> None:
        """Nobody waits any more: what still runs is stopped."""
        self._pending.pop(pending.call.id, None)
        if pending.timer is not None:
            pending.timer.cancel()
        answered = pending.has_ended and (pending.error is None or pending.result is not None)
        pending.has_ended = True
        self._later(lambda: self._settle(pending, answered=answered))

    async def close(self) -> None:
        """Let nothing go on."""
        for pending in self._pending.values():
            pending.fail(Unavailable("The server is shutting down.", code="service_unavailable", retry_after_s=1))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # In threads, because Redis is asked

    def _begin(self, pending: Pending, tokens: int) -> None:
        call = pending.call
        if time.monotonic() - self._signed_at > SIGN_OF_LIFE_S:
            self._live.live_on(self._name)
            self._signed_at = time.monotonic()
        trip = Trip(self._backend.redis)
        self._backend.quotas.add_open_job(trip, pending.place.tenant, call.id, tokens)
        self._live.add_ask(trip, call, place=pending.place, **self._limits)
        full, reply = trip.go()
        if full is not None:
            # There may be room without what has ended. If not, whoever asks lets go of it, and so it is stopped.
            self._backend.quotas.open_job(pending.place.tenant, call.id, call.model, tokens)
        self._check(call, reply.decode())

    def _ask(self, pending: Pending) -> None:
        self._check(pending.call, self._live.ask(pending.call, place=pending.place, **self._limits))

    @property
    def _limits(self) -> dict[str, Any]:
        settings = self._settings
        return {"most_waiting": settings.max_waiting_requests, "life_s": settings.online_timeout_s}

    def _check(self, call: Call, reply: str) -> None:
        """Raise the UserError of a request that is not in line."""
        if reply == "full":
            settings = self._settings
            message = f"{settings.max_waiting_requests} requests wait for '{call.model}' already. Try again shortly."
            raise RateLimited(message, retry_after_s=1)
        if reply == "away":
            raise self._away(call.model)

    def _away(self, model: str) -> UserError:
        if self._live.was_served(model) or model in {card.id for card in self._backend.store.models()}:
            message = f"No worker takes requests for the model '{model}' now. Try again shortly."
            return Unavailable(message, code="model_unavailable", param="model", retry_after_s=2)
        message = f"The model `{model}` does not exist or you do not have access to it."
        return NotFound(message, param="model", code="model_not_found")

    def _settle(self, pending: Pending, *, answered: bool) -> None:
        self._backend.quotas.give_back(pending.place.tenant, pending.call.id)
        if answered:
            self._live.forget([pending.call])
        else:
            self._live.hang_up(pending.call)

    # What workers say

    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._start(self._read())
            self._start(self._watch())

    async def _read(self) -> None:
        assert self._settings.redis_url is not None
        last = b"0"
        async with Redis.from_url(self._settings.redis_url, protocol=2) as redis:
            while True:
                try:
                    last = await self._read_some(redis, last)
                except (RedisError, OSError) as error:
                    log.warning("online answers wait for Redis: %s", error)
                    await asyncio.sleep(RETRY_S)

    async def _read_some(self, redis: Redis, last: bytes) -> bytes:
        """Hand on what has come since; the place after it. What was read is dropped now and then."""
        key = messages_key(self._name)
        if time.monotonic() - self._signed_at > SIGN_OF_LIFE_S:
            await redis.set(api_key(self._name), 1, px=int(API_TTL_S * 1000))
            await redis.xtrim(key, minid=last)
            self._signed_at = time.monotonic()
        found: Any = await redis.xread({key: last}, count=MOST_MESSAGES, block=BLOCK_MS)
        for place, fields in found[0][1] if found else ():
            self._hear(json.loads(fields[b"m"]))
            last = place
        return last

    def _hear(self, envelope: dict[str, Any]) -> None:
        sampling = envelope.get("sampling", NEUTRAL)
        phases = envelope.get("phases", {})  # Of those of whom nothing was said before; earlier versions have none.
        for call_id, attempt, number, kind, content in envelope["messages"]:
            pending = self._pending.get(call_id)
            if pending is None or pending.call.attempt != attempt:
                if kind == "rows":  # Nobody waits for the rest either.
                    place = envelope["model"], envelope["worker"], f"{call_id} {attempt}"
                    self._later(lambda place=place: self._live.stop(*place))  # type: ignore[misc]
            elif kind == "again":
                self._start(self._again(pending, attempt))
            else:
                pending.phases, pending.sampling = phases.get(call_id, pending.phases), sampling
                pending.hear(number, kind, content)

    # Workers that die

    async def _watch(self) -> None:
        while True:
            try:
                await self._weigh()
                await asyncio.sleep(LOOK_S)
                await self._look()
            except RedisError as error:
                log.warning("whether workers live cannot be seen: %s", error)
                await asyncio.sleep(LOOK_S)

    async def _weigh(self) -> None:
        """Know by which weights tenants take turns."""
        if time.monotonic() >= self._weighed_at + WEIGHTS_S:
            self._weights = await self._in_thread(self._backend.store.tenants.weights)
            self._weighed_at = time.monotonic()

    async def _look(self) -> None:
        """Ask again for what no living worker will answer, if that is seen twice.

        After a pause of Redis itself all workers seem dead for a moment.
        """
        by_model: dict[str, dict[str, int]] = defaultdict(dict)
        for pending in self._pending.values():
            if pending.is_asked and not pending.has_ended:
                by_model[pending.call.model][pending.call.id] = pending.call.attempt
        before, self._doubted = self._doubted, set()
        for model, attempts in by_model.items():
            lost = await self._in_thread(lambda model=model, ids=list(attempts): self._live.lost(model, ids))  # type: ignore[misc]
            self._doubted |= {(call_id, attempts[call_id]) for call_id in lost}
        for call_id, attempt in self._doubted & before:
            if call_id in self._pending:
                await self._again(self._pending[call_id], attempt)

    async def _again(self, pending: Pending, attempt: int) -> None:
        """The worker that had this try will not go on with it."""
        if pending.has_ended or pending.call.attempt != attempt:
            return
        if pending.is_begun or attempt >= MOST_ATTEMPTS:
            pending.fail(UserError("The worker was lost. Try again.", code="worker_lost", status=500))
            return
        pending.begin_again()
        try:
            await self._in_thread(lambda: self._ask(pending))
        except UserError as error:
            pending.fail(error)
        except RedisError as error:
            log.warning("a request that its worker lost is asked again a little later: %s", error)

    # Tasks

    def _later(self, action: Callable[[], None]) -> None:
        """Do it in a thread, without anybody waiting for it."""
        self._start(self._quietly(action))

    async def _quietly(self, action: Callable[[], None]) -> None:
        try:
            await self._in_thread(action)
        except RedisError as error:
            log.warning("the end of an online request could not be told: %s", error)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, action: Callable[[], Any]) -> Any:
        return await to_thread.run_sync(action, limiter=self._threads)


def _too_late(timeout_s: float) -> UserError:
    message = f"The request could not be finished within {timeout_s:g} s (PRESSRUN_ONLINE_TIMEOUT_S)."
    return UserError(message, code="request_timeout", status=504)
