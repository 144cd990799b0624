"""What one chat choice says: the words of its message, the thoughts before them, and the tools that it calls.

Knows nothing of JSON bodies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.request import TokenLogprob
from .deltas import Parser, ToolCallDelta
from .parsing.style import Style
from .prompts import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A whole message; its calls are whole too. `num_calls_first` of them stand before its first word."""

    content: str = ""
    thoughts: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    num_calls_first: int = 0


NOTHING = Said()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one sequence says: its text, and the log-probabilities of the tokens that the text is made of.

    Of a chat, what its text means is `said`.
    """

    text: str
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    said: Said = NOTHING


def said_in(parser: Parser, text: str) -> Said:
    """What a new parser finds in a whole text."""
    deltas = [*parser.feed(text), *parser.close()]
    before = itertools.takewhile(lambda delta: not delta.content, deltas)
    return Said(
        content="".join(delta.content for delta in deltas),
        thoughts="".join(delta.reasoning_content for delta in deltas),
        calls=tuple(call for delta in deltas for call in delta.tool_calls),
        num_calls_first=sum(len(delta.tool_calls) for delta in before),
    )


def num_thinking_tokens(said: Said, tokens: Sequence[int], style: Style, tokenizer: Tokenizer) -> int:
    """How many of a choice's tokens are its thoughts, with the tags around them."""
    tags = style.thoughts
    if tags is None or not said.thoughts:
        return 0
    if style.close_id is not None:
        return tokens.index(style.close_id) + 1 if style.close_id in tokens else len(tokens)
    # Where the tag is several tokens: the fewest that have it in their text.
    keep = style.kept(with_tools=False)
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if tags.close in tokenizer.decode(tokens[:middle], keep=keep):
            high = middle
        else:
            low = middle + 1
    return low
