"""The chunks of a streamed chat or completion, in OpenAI's shapes, as events (responses: `response_events.py`).

A worker tells of choices in rows: place, delta, log-probabilities, end. Rows that a slow client has not been sent yet
are put together, so that what waits for it is no more than its answer. Knows nothing of where rows come from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ..jobs.errors import UserError
from ..jobs.ids import passing_id
from ..jobs.records import CHAT
from ..jobs.requests import ChatCompletionRequest, CompletionRequest

DONE = b"data: [DONE]\n\n"
TEXTS = ("content", "reasoning_content", "text")


@dataclass(slots=True, kw_only=True)
class Row:
    """Something of one choice. While it is `text`, the values of its delta are lists of pieces."""

    place: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    text: str | None


class Rows:
    """What a client has not been sent yet."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._last: dict[int, Row] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, place: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> None:
        """One row, as it has come from the worker."""
        text = next(iter(delta)) if len(delta) == 1 and next(iter(delta)) in TEXTS else None
        last = self._last.get(place)
        if last is not None and text is not None and last.text == text and last.finish_reason is None:
            last.delta[text].append(delta[text])
            last.logprobs, last.finish_reason = _joined(last.logprobs, logprobs), finish
            return
        pieces = delta if text is None else {text: [delta[text]]}
        row = Row(place=place, delta=pieces, logprobs=logprobs, finish_reason=finish, text=text)
        self._rows.append(row)
        self._last[place] = row

    def take(self) -> list[Row]:
        """All of it; texts are whole again."""
        rows, self._rows, self._last = self._rows, [], {}
        for row in rows:
            if row.text is not None:
                row.delta = {row.text: "".join(row.delta[row.text])}
        return rows


class Events(Protocol):
    """The events of one stream, in the words of its route."""

    def events(self, rows: Iterable[Row]) -> bytes:
        """What is to be sent of these rows."""

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """What is sent after the last row."""

    def failed(self, error: UserError) -> bytes:
        """What is sent in place of the rest."""


class Chunks:
    """The events of one stream of a chat or a completion."""

    def __init__(self, url: str, body: ChatCompletionRequest | CompletionRequest) -> None:
        self._is_chat = url == CHAT
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._begun: set[int] = set()
        self._common = {
            "id": passing_id("chatcmpl-" if self._is_chat else "cmpl-"),
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": None,
        }

    def events(self, rows: Iterable[Row]) -> bytes:
        """Rows as events; a chat choice begins with one that tells its role."""
        return b"".join(self._chunk([choice]) for row in rows for choice in self._choices(row))

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """The events after the last row."""
        return (self._chunk([], usage) if self._with_usage else b"") + DONE

    def failed(self, error: UserError) -> bytes:
        """How a stream ends that cannot go on."""
        return event(error.body())

    def _choices(self, row: Row) -> Iterable[dict[str, Any]]:
        common = {"index": row.place, "logprobs": row.logprobs, "finish_reason": row.finish_reason}
        if not self._is_chat:
            yield common | row.delta
            return
        if row.place not in self._begun:
            self._begun.add(row.place)
            first = {"role": "assistant", "content": "", "refusal": None}
            yield {"index": row.place, "delta": first, "logprobs": None, "finish_reason": None}
        yield common | {"delta": row.delta}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        return event(self._common | {"choices": choices} | ({"usage": usage} if self._with_usage else {}))


def event(data: Any) -> bytes:
    """One server-sent event. ASCII, because a message may quote what no encoding can carry."""
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


def _joined(earlier: dict[str, Any] | None, later: dict[str, Any] | None) -> dict[str, Any] | None:
    if earlier is None or later is None:
        return earlier or later
    for name, values in later.items():
        if isinstance(values, list):
            earlier[name].extend(values)
    return earlier
