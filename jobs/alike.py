"""Requests that ask for the same of different prompts, as most lines of a batch do: what they share is read once.

Beside its prompt a request may say some forty things, and to check that it says none of them costs more than to read a
short prompt. So the first of several is read as a whole, and of those that are written like it only the prompt. Where
that has a fault, the whole is read after all and its findings count: what is refused, and how, `requests.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .generation import NEUTRAL
from .json_text import written
from .messages import Message
from .records import CHAT, COMPLETIONS
from .requests import ChatCompletionRequest, Request, parse_body
from .strict import Text

_STRICT = ConfigDict(strict=True)
# The field that holds an endpoint's prompt, and what is looked at alone. Of other kinds the whole is read.
_PROMPTS: Mapping[str, tuple[str, TypeAdapter[Any]]] = {
    CHAT: ("messages", TypeAdapter(Annotated[list[Message], Field(min_length=1, fail_fast=True)], config=_STRICT)),
    COMPLETIONS: ("prompt", TypeAdapter(Annotated[Text, Field(min_length=1)], config=_STRICT)),
}
Kind = tuple[str, bytes]  # An endpoint, and all but the prompt of what was sent to it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A request. All of the same `kind` differ in their prompts only; None: nothing is known of others like it."""

    request: Request
    kind: Kind | None


class Alike:
    """Reads requests one after another, and remembers one of each kind: to be used for a bounded number of them.

    What they leave out of the `sampling` is as given there.
    """

    def __init__(self, sampling: Mapping[str, float] = NEUTRAL) -> None:
        self._sampling = sampling
        self._known: dict[Kind, Request] = {}

    def parse(self, endpoint: str, body: object) -> Parsed:
        """What `parse_body` makes of it. Raises UserError as that does."""
        kind = _kind(endpoint, body)
        known = None if kind is None else self._known.get(kind)
        request = None if known is None else _with_prompt(known, endpoint, body)
        if request is None:
            request = parse_body(endpoint, body, self._sampling)
            if kind is not None:
                self._known[kind] = request
        return Parsed(request=request, kind=kind)


def _kind(endpoint: str, body: object) -> Kind | None:
    if endpoint not in _PROMPTS or not isinstance(body, dict):
        return None
    rest = dict(body)
    rest.pop(_PROMPTS[endpoint][0], None)
    # Not the values themselves: to Python 1, 1.0 and true are equal.
    return endpoint, written(rest)


def _with_prompt(known: Request, endpoint: str, body: Any) -> Request | None:
    """A request like a known one with the prompt of `body`; None where it takes more than the prompt to tell."""
    name, adapter = _PROMPTS[endpoint]
    if isinstance(known, ChatCompletionRequest) and known.continue_final_message:
        return None  # Its last message has to be the assistant's.
    try:
        return known.model_copy(update={name: adapter.validate_python(body.get(name))})
    except ValidationError:
        return None
