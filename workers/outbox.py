"""The answers of online requests on their way to the API processes that wait for them: a thread of their own.

Tokens become text here, beside the main loop, and all that has gathered meanwhile goes out in one round trip, in one
message for each API process. Messages of one try of a request are numbered, so that one that goes out twice is known.
Knows nothing of engines.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from redis.exceptions import RedisError

from ..engine.request import Output
from ..jobs.errors import UserError
from ..jobs.generation import NEUTRAL
from ..jobs.live import Live
from ..jobs.records import LineResult
from .moments import Phases
from .online import OnlineRequest
from .prompts import Prepared, Tokenizer
from .responses import result_of

log = logging.getLogger(__name__)
RETRY_S = 0.1
MOST_AT_ONCE = 4096
STATUS_OF = {"line_timeout": 504}  # Of a request that came to no answer; others are 500.
BROKEN = UserError("The answer could not be written.", status=500, code="server_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something to tell an API process. The first of a request says how long the `phases` before it took."""

    api: str
    content: list[Any]
    phases: Phases | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to tell of a request: new tokens of the choice at `place`; the whole; a result; or that it is put
    down unanswered."""

    request: OnlineRequest
    place: int = 0
    output: Output | None = None
    prepared: Prepared | None = None
    outputs: tuple[Output, ...] = ()
    result: LineResult | None = None


class Outbox:
    """Hand in from any thread; nothing here waits. `on_dead` hears of API processes that are gone.

    Those that wait are told how the model is drawn where requests say nothing: by `sampling`.
    """

    def __init__(
        self,
        live: Live,
        tokenizer: Tokenizer,
        *,
        model: str,
        worker: str,
        on_dead: Callable[[str], None],
        sampling: Mapping[str, float] = NEUTRAL,
    ) -> None:
        self._live = live
        self._tokenizer = tokenizer
        self._common: dict[str, Any] = {"model": model, "worker": worker}
        if sampling != NEUTRAL:  # Which goes without saying, as it did in earlier versions.
            self._common["sampling"] = dict(sampling)
        self._on_dead = on_dead
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def tokens(self, request: OnlineRequest, place: int, output: Output) -> None:
        """A choice of a stream has new tokens."""
        self._events.put(Event(request=request, place=place, output=output))

    def answer(self, request: OnlineRequest, prepared: Prepared, outputs: tuple[Output, ...]) -> None:
        """A request has run; `outputs` are whole."""
        self._events.put(Event(request=request, prepared=prepared, outputs=outputs))

    def result(self, request: OnlineRequest, result: LineResult) -> None:
        """A request has ended without having run to its end."""
        self._events.put(Event(request=request, result=result))

    def put_down(self, request: OnlineRequest) -> None:
        """A request is left for another worker."""
        self._events.put(Event(request=request))

    def close(self, timeout_s: float) -> None:
        """Send what is there, in so many seconds at most."""
        self._give_up_at = time.monotonic() + timeout_s
        self._events.put(None)
        self._thread.join(timeout_s + 1)

    def _run(self) -> None:
        open_ = True
        while open_:
            events = self._gathered()
            open_ = events[-1] is not None
            self._send([message for event in events if event is not None for message in self._messages(event)])

    def _gathered(self) -> list[Event | None]:
        """All that there is, at least one; None, which ends it, is the last."""
        events = [self._events.get()]
        try:
            while events[-1] is not None and len(events) < MOST_AT_ONCE:
                events.append(self._events.get_nowait())
        except Empty:
            pass
        return events

    def _messages(self, event: Event) -> list[Message]:
        """What an event means for the API process that waits."""
        request = event.request
        if request.stopped:
            return []
        try:
            contents = self._contents(event)
        except Exception:
            # The edge of one answer: whatever a tokenizer does with it, the others are to be told.
            log.exception("the answer to request %s could not be written", request.name)
            contents = [("result", [BROKEN.status, BROKEN.body()])]
        messages = []
        for kind, content in contents:
            number, request.num_messages = request.num_messages, request.num_messages + 1
            phases = None if number else request.moments.phases()
            told = [request.call.id, request.call.attempt, number, kind, content]
            messages.append(Message(api=request.call.api, content=told, phases=phases))
        return messages

    def _contents(self, event: Event) -> list[tuple[str, Any]]:
        stream = event.request.stream
        if event.output is not None:
            assert stream is not None
            rows = stream.feed(event.place, event.output)
            return [("rows", rows)] if rows else []
        if event.result is not None:
            return [("result", _status_and_body(event.result))]
        if event.prepared is None:
            return [("again", None)]
        failed = any(output.finish_reason in ("error", "abort") for output in event.outputs)
        if stream is None or failed:
            return [("result", _status_and_body(result_of(event.prepared, event.outputs, self._tokenizer)))]
        return [("end", stream.usage(event.outputs))]

    def _send(self, messages: Sequence[Message]) -> None:
        by_api: dict[str, list[Message]] = defaultdict(list)
        for message in messages:
            by_api[message.api].append(message)
        packed = [(api, self._packed(of_api)) for api, of_api in by_api.items()]
        while packed:
            try:
                alive = self._live.answer(packed)
            except RedisError as error:
                log.warning("answers of online requests wait for Redis: %s", error)
                if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                    return
                time.sleep(RETRY_S)
                continue
            for (api, _), lives in zip(packed, alive, strict=True):
                if not lives:
                    self._on_dead(api)
            return

    def _packed(self, messages: Sequence[Message]) -> bytes:
        fields = self._common | {"messages": [message.content for message in messages]}
        phases = {message.content[0]: message.phases for message in messages if message.phases is not None}
        if phases:
            fields["phases"] = phases
        # ASCII, because a message may quote what no encoding can carry.
        return json.dumps(fields, separators=(",", ":")).encode()


def _status_and_body(result: LineResult) -> tuple[int, Any]:
    """What a line of a batch's files says, as an HTTP answer."""
    line = json.loads(result.data)
    if line["response"] is not None:
        return line["response"]["status_code"], line["response"]["body"]
    error = line["error"]
    status = STATUS_OF.get(error["code"], 500)
    return status, UserError(error["message"], code=error["code"], status=status).body()
