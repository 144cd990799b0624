"""The events of a streamed response, as `/v1/responses` has them: each with its type and its number.

What a model thinks, says and calls are items. The texts of a thought or a message grow while it is open; a call is told
when it is whole. The last event holds the whole response. Knows nothing of where rows come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..jobs.errors import UserError
from ..jobs.generation import NEUTRAL
from ..jobs.ids import passing_id
from ..jobs.response_objects import (
    Item,
    Status,
    begun,
    call_item,
    ended,
    failed,
    message_item,
    message_part,
    thought_item,
    thought_part,
)
from ..jobs.response_requests import ResponsesRequest
from .chunks import Row

Event = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """An item that is text: how it and its part look, and what its events are called and hold besides."""

    prefix: str
    item: Callable[[str, Sequence[dict[str, Any]], Status], Item]
    part: Callable[[str], dict[str, Any]]
    event: str
    more: Mapping[str, Any]


THOUGHT = _Kind(prefix="rs_", item=thought_item, part=thought_part, event="response.reasoning_text", more={})
MESSAGE = _Kind(
    prefix="msg_", item=message_item, part=message_part, event="response.output_text", more={"logprobs": []}
)


@dataclass(slots=True, kw_only=True)
class _Text:
    """An item whose text grows, at its place in the output."""

    kind: _Kind
    place: int
    id: str
    pieces: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[Event]:
        item = self.kind.item(self.id, [], "in_progress")
        yield {"type": "response.output_item.added", "output_index": self.place, "item": item}
        yield {"type": "response.content_part.added", **self._where, "part": self.kind.part("")}

    def add(self, text: str) -> Event:
        self.pieces.append(text)
        return {"type": f"{self.kind.event}.delta", **self._where, "delta": text, **self.kind.more}

    def end(self, status: Status) -> Iterator[Event]:
        text = "".join(self.pieces)
        yield {"type": f"{self.kind.event}.done", **self._where, "text": text, **self.kind.more}
        yield {"type": "response.content_part.done", **self._where, "part": self.kind.part(text)}
        yield {"type": "response.output_item.done", "output_index": self.place, "item": self.item(status)}

    def item(self, status: Status) -> Item:
        return self.kind.item(self.id, [self.kind.part("".join(self.pieces))], status)

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.place, "content_index": 0}


class ResponseEvents:
    """The events of one stream. What is not asked for is drawn by `sampling`."""

    def __init__(self, asked: ResponsesRequest, sampling: Mapping[str, float] = NEUTRAL) -> None:
        self._response = begun(asked, sampling)
        self._output: list[Item | _Text] = []
        self._thought: _Text | None = None
        self._message: _Text | None = None
        self._status: Status = "completed"
        self._num_events = 0

    def events(self, rows: Iterable[Row]) -> bytes:
        """Rows as events, after those that a stream begins with."""
        names = () if self._num_events else ("response.created", "response.in_progress")
        found: list[Event] = [{"type": name, "response": self._response} for name in names]
        for row in rows:
            found += self._of_row(row)
        return self._sent(found)

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """The events after the last row."""
        found = [] if self._output else list(self._open(MESSAGE))  # An answer of nothing is a message of nothing.
        for text in (self._thought, self._message):
            found += text.end(self._status) if text is not None else ()
        response = ended(self._response, self._items(self._status), usage, self._status)
        return self._sent([*found, {"type": f"response.{self._status}", "response": response}])

    def failed(self, error: UserError) -> bytes:
        """How a stream ends that cannot go on."""
        why = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        response = failed(self._response, self._items("incomplete"), error)
        return self._sent([why, {"type": "response.failed", "response": response}])

    def _of_row(self, row: Row) -> Iterator[Event]:
        if thought := row.delta.get("reasoning_content"):
            yield from () if self._thought else self._open(THOUGHT)
            assert self._thought is not None
            yield self._thought.add(thought)
        if words := row.delta.get("content"):
            yield from self._close_thought()
            yield from () if self._message else self._open(MESSAGE)
            assert self._message is not None
            yield self._message.add(words)
        for call in row.delta.get("tool_calls", ()):
            yield from self._close_thought()
            yield from self._call(call)
        if row.finish_reason == "length":
            self._status = "incomplete"

    def _open(self, kind: _Kind) -> Iterator[Event]:
        text = _Text(kind=kind, place=len(self._output), id=passing_id(kind.prefix))
        self._output.append(text)
        if kind is THOUGHT:
            self._thought = text
        else:
            self._message = text
        yield from text.begin()

    def _close_thought(self) -> Iterator[Event]:
        """What follows a thought ends it."""
        if self._thought is not None:
            yield from self._thought.end("completed")
            self._output[self._thought.place] = self._thought.item("completed")
            self._thought = None

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        place, function = len(self._output), call["function"]
        given = passing_id("fc_"), call["id"], function["name"]
        item = call_item(*given, function["arguments"], "completed")
        where = {"item_id": item["id"], "output_index": place}
        begun = call_item(*given, "", "in_progress")
        self._output.append(item)
        yield {"type": "response.output_item.added", "output_index": place, "item": begun}
        yield {"type": "response.function_call_arguments.delta", **where, "delta": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **where, "arguments": item["arguments"]}
        yield {"type": "response.output_item.done", "output_index": place, "item": item}

    def _items(self, status: Status) -> list[Item]:
        """All items; what is still open has that status."""
        return [one.item(status) if isinstance(one, _Text) else one for one in self._output]

    def _sent(self, events: Iterable[Event]) -> bytes:
        """Events with their numbers, as they are sent. ASCII, because a text may quote what no encoding can carry."""
        sent = b""
        for event in events:
            fields = event | {"sequence_number": self._num_events}
            self._num_events += 1
            data = json.dumps(fields, separators=(",", ":"))
            sent += f"event: {event['type']}\ndata: {data}\n\n".encode()
        return sent
