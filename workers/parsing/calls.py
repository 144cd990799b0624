"""The calls of tools in one choice: what counts as one, and how they are numbered and named.

A call is told only when it is whole and has been found to be one, because what has been sent cannot be taken back.
Knows nothing of how a model writes them.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterator, Mapping
from typing import Any

from ...jobs.ids import passing_id
from ..deltas import Delta, ToolCallDelta
from .source import parsed

# A text with more markers of calls than this is read no further: each costs a look at all that follows.
MOST_CALLS = 128
_ALPHANUMERIC = string.ascii_letters + string.digits

Call = tuple[str, Mapping[str, Any]]  # The function's name, and its arguments.


class Calls:
    """Makes deltas of calls. `schemas` are those of the functions on offer, by name."""

    def __init__(
        self, schemas: Mapping[str, Mapping[str, Any]], *, parallel: bool = True, short_ids: bool = False
    ) -> None:
        self.schemas = schemas
        self._most = MOST_CALLS if parallel else 1
        self._short_ids = short_ids
        self._num = 0

    def made(self, name: str, arguments: Mapping[str, Any]) -> Iterator[Delta]:
        """The delta of one more call; none where the client wants no more."""
        if self._num < self._most:
            text = json.dumps(arguments, ensure_ascii=False)
            call = ToolCallDelta(index=self._num, id=self._new_id(), name=name, arguments=text)
            yield Delta(tool_calls=(call,))
        self._num += 1

    def _new_id(self) -> str:
        """Mistral's templates refuse ids that are not nine letters or digits."""
        if self._short_ids:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return passing_id("call_")


def call_in(value: object, *names_of_arguments: str) -> Call | None:
    """The call that a JSON object spells, None if it spells none. Arguments may be left out, or be a string of JSON."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments: Any = next((value[name] for name in names_of_arguments if name in value), {})
    arguments = parsed(arguments) if isinstance(arguments, str) else arguments
    return (value["name"], arguments) if isinstance(arguments, dict) else None
