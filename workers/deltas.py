"""What a piece of a chat model's text means: words for the reader, thoughts, or a part of a tool call.

A parser is fed the text of one choice in pieces of any size and gives deltas as soon as they are certain, so that
streams and whole answers are read by the same code. Knows nothing of tokens or of JSON bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A part of the call at `index`: its id and name come first and once, its arguments in pieces of JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What has been added to a message."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Parser(Protocol):
    """Reads one choice from its beginning. Text may be held back until it is known what it is."""

    def feed(self, text: str) -> list[Delta]: ...
    def close(self) -> list[Delta]:
        """What was held back, at the end of the text."""


class PlainParser:
    """All text is content."""

    def feed(self, text: str) -> list[Delta]:
        return [Delta(content=text)] if text else []

    def close(self) -> list[Delta]:
        return []
