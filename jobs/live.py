"""Online requests on their way to a worker, and answers on their way back: what of them lies in Redis.

An online request lives only as long as the connection of its client, so nothing here is waited for until it is on disk.
The API process that asks keeps the request, and asks again where a worker dies before it has said anything. A request
is named by its id and the number of its try, so that what a worker says late is known as such.

| key | what |
|---|---|
| `pressrun:live:{model}:line:{priority}:{tenant}` | ids of requests that wait for a worker, in order of arrival |
| `pressrun:live:{model}:line` | ids of those that go ahead of all, because they are asked again |
| `pressrun:live:{model}:priorities` | at which anybody waits |
| `pressrun:live:{model}:turns:{priority}` | tenants that wait, by what they had |
| `pressrun:live:{model}:had:{priority}`, `:clock:{priority}` | what others had, and where those start who were idle |
| `pressrun:live:{model}:waiting`, `:waiting:{tenant}`, `:tenants` | who waits, by when it is given up |
| `pressrun:live:{model}:bell` | what workers without work wait for |
| `pressrun:live:{model}:request:{id}` | a hash: `call`, `tenant`, `priority`, `price`, and the `worker` that took it |
| `pressrun:live:{model}:workers`, `:taking` | workers by their last sign of life: all, and those that take requests |
| `pressrun:live:{model}:taken:{worker}` | what a worker took last, should the answer to it be lost |
| `pressrun:live:{model}:stop:{worker}` | requests that a worker is to stop |
| `pressrun:live:{api}:messages` | a stream of messages to an API process |
| `pressrun:live:{api}:lives` | its sign of life |

In keys the names of models and API processes stand in braces: what one script touches lies in one slot of a cluster.
A lower priority is served first. Among tenants of one priority turns go by tokens, as they do for batches
(`policy.py`; docs/decisions/0013): a turn costs a request's tokens by its tenant's weight, and who has had the least is
next. Knows nothing of engines or of HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from .model_cards import KNOWN_S, SERVED
from .store import Store
from .trips import Trip

SILENCE_S = 1.5  # A worker that was not heard of for so long takes none, and is dead if that is seen twice.
BEAT_S = 0.4
API_TTL_S = 6.0
MESSAGES_TTL_S = 30
HAD_S = 90_000  # Who had what is forgotten after so long without anybody: longer than any request may wait.


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One online request, as it travels. `api` is the process that waits for its answer.

    `trace` is the span of its HTTP request, as a `traceparent`, if that is traced.
    """

    id: str
    attempt: int
    api: str
    url: str
    model: str
    body: dict[str, Any]
    trace: str | None = None

    def dump(self) -> bytes:
        # Not `asdict`, which copies all of the body.
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def load(cls, raw: bytes) -> Call:
        fields = json.loads(raw)
        # An API process of a later version may say more.
        return cls(**{name: fields[name] for name in fields if name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in line a request belongs: a lower `priority` goes first, and its turn costs the tenant so many tokens."""

    tenant: str = "default"
    priority: int = 0
    price: float = 1.0


PLACE = Place()


class Live:
    """Both ends of the road. Thread-safe; every method is one round trip, and may be done twice."""

    def __init__(self, store: Store) -> None:
        self.redis: Redis = store.redis
        self.scripts = store.scripts

    # The API's end

    def live_on(self, api: str) -> None:
        """Say that an API process lives, for the next `API_TTL_S` seconds."""
        self.redis.set(api_key(api), 1, px=int(API_TTL_S * 1000))

    def ask(self, call: Call, *, most_waiting: int, life_s: float, place: Place = PLACE) -> str:
        """Put a request in line: 'ok', 'full', or 'away' where no worker takes any. A second try goes ahead.

        Where `most_waiting` wait already, a tenant that has less than its part of them is let in all the same.
        """
        trip = Trip(self.redis)
        self.add_ask(trip, call, most_waiting=most_waiting, life_s=life_s, place=place)
        return str(trip.go()[0].decode())

    def add_ask(self, trip: Trip, call: Call, *, most_waiting: int, life_s: float, place: Place = PLACE) -> None:
        """The same as a part of a trip; the reply is bytes."""
        again = "1" if call.attempt > 1 else "0"
        tenant, priority = place.tenant, place.priority
        names = [
            "bell",
            "taking",
            f"request:{call.id}",
            "line",
            "waiting",
            f"waiting:{tenant}",
            "tenants",
            "priorities",
        ]
        names += [f"turns:{priority}", f"line:{priority}:{tenant}", f"had:{priority}", f"clock:{priority}"]
        args: list[Any] = [call.id, call.dump(), most_waiting, SILENCE_S, int(life_s) + 1, again]
        args += [tenant, priority, place.price]
        trip.add(self.scripts["live_ask"], keys=[_key(call.model, name) for name in names], args=args)

    def was_served(self, model: str) -> bool:
        """Whether a worker has served the model within the last day."""
        at = self.redis.hget(SERVED, model)
        return at is not None and float(at) >= time.time() - KNOWN_S

    def hang_up(self, call: Call) -> None:
        """Nobody waits for the answer any more."""
        keys = [_key(call.model, "line"), _request_key(call.model, call.id)]
        self.scripts["live_hang_up"](keys=keys, args=[call.id, call.attempt, _key(call.model, "")])

    def stop(self, model: str, worker: str, name: str) -> None:
        """Have a worker stop a request, named by id and try, that nobody waits for."""
        key = _key(model, f"stop:{worker}")
        pipe = self.redis.pipeline(transaction=False)
        pipe.rpush(key, name)
        pipe.expire(key, 60)
        pipe.execute()

    def lost(self, model: str, ids: Sequence[str]) -> list[str]:
        """Those of the requests that no living worker will answer."""
        keys = [_key(model, "workers"), _key(model, "taking"), *(_request_key(model, one) for one in ids)]
        flags = self.scripts["live_lost"](keys=keys, args=[SILENCE_S])
        return [one for one, flag in zip(ids, flags, strict=True) if flag]

    def forget(self, calls: Sequence[Call]) -> None:
        """These have been answered."""
        pipe = self.redis.pipeline(transaction=False)
        for call in calls:
            pipe.delete(_request_key(call.model, call.id))
        pipe.execute()

    # The worker's end

    def open(self, model: str) -> None:
        """Note that the model is served here; whoever asks for it later is told to wait, not that there is none."""
        self.redis.hset(SERVED, model, f"{time.time():.0f}")

    def beat(self, model: str, worker: str, *, taking: bool) -> None:
        """Say that a worker lives, and whether it takes requests."""
        self.scripts["live_beat"](
            keys=[_key(model, "workers"), _key(model, "taking")], args=[worker, "1" if taking else "0"]
        )

    def leave(self, model: str, worker: str) -> None:
        """A worker has ended in order."""
        for name in ("workers", "taking"):
            self.redis.zrem(_key(model, name), worker)

    def wait(self, model: str, worker: str, timeout_s: float) -> str | None:
        """Wait for a request to stop, whose name is returned."""
        popped: Any = self.redis.blpop([_key(model, f"stop:{worker}")], timeout=timeout_s)
        return _to_stop(popped)

    def take(self, model: str, worker: str, number: int, most: int) -> list[Call]:
        """Take requests from the line. `number` is another for every taking, and the same where it is repeated."""
        trip = Trip(self.redis)
        self._add_take(trip, model, worker, number, most)
        return [Call.load(raw) for raw in trip.go()[0]]

    def wait_and_take(
        self, model: str, worker: str, timeout_s: float, number: int, most: int
    ) -> tuple[str | None, list[Call]]:
        """Wait for a request to stop or for the bell of new ones, and take them: the name of the one, or the others.

        Redis takes up what follows a command that waits as soon as that is answered, with no round trip between them.
        So a worker that freezes may still take what comes within `timeout_s`; that is asked again, as all that it has.
        """
        trip = Trip(self.redis)
        trip.pipe.blpop([_key(model, f"stop:{worker}"), _key(model, "bell")], timeout=timeout_s)
        self._add_take(trip, model, worker, number, most)
        popped, calls = trip.replies()
        for reply in (popped, calls):
            # A request to stop has been popped for good: it is told even where a full Redis lets none be taken.
            if isinstance(reply, Exception) and (reply is popped or _to_stop(popped) is None):
                raise reply
        return _to_stop(popped), [] if isinstance(calls, Exception) else [Call.load(raw) for raw in calls]

    def _add_take(self, trip: Trip, model: str, worker: str, number: int, most: int) -> None:
        keys = [_key(model, "line"), _key(model, f"taken:{worker}")]
        trip.add(self.scripts["live_take"], keys=keys, args=[worker, number, most, _key(model, ""), HAD_S])

    def answer(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Leave a message for each of these API processes; whether each of them lives."""
        trip = Trip(self.redis)
        for api, message in messages:
            keys = [messages_key(api), api_key(api)]
            trip.add(self.scripts["live_answer"], keys=keys, args=[message, MESSAGES_TTL_S])
        return [reply == 1 for reply in trip.go()]

    def dead(self, apis: Sequence[str]) -> list[str]:
        """Those of the API processes that have not said for `API_TTL_S` seconds that they live."""
        pipe = self.redis.pipeline(transaction=False)
        for api in apis:
            pipe.exists(api_key(api))
        return [api for api, lives in zip(apis, pipe.execute(), strict=True) if not lives]


def _to_stop(popped: Any) -> str | None:
    """The name that was popped, if it was not the bell."""
    return None if popped is None or popped[0].endswith(b":bell") else str(popped[1].decode())


def messages_key(api: str) -> str:
    """The stream that an API process reads."""
    return f"pressrun:live:{{{api}}}:messages"


def model_keys(model: str) -> tuple[str, str]:
    """What is there of a model without requests and does not end by itself."""
    return _key(model, "workers"), _key(model, "taking")


def api_key(api: str) -> str:
    """There while an API process lives."""
    return f"pressrun:live:{{{api}}}:lives"


def _key(model: str, name: str) -> str:
    return f"pressrun:live:{{{model}}}:{name}"


def _request_key(model: str, id: str) -> str:
    return _key(model, f"request:{id}")
