"""Grammars that are simple to check, and a crowd of requests of which most follow one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher

from pressrun.engine.request import Request

EOS = 2  # Of the fixture `speller`.
WORD = LLMatcher.grammar_from_regex("[a-z]{3,6}( [a-z]{3,6}){0,3}")
JSON = LLMatcher.grammar_from_json_schema({"type": "object"})
CHOICE = LLMatcher.grammar_from_lark('start: "red" | "green" | "greenish"')
SUM = LLMatcher.grammar_from_lark('start: n "=" n\nn: d | n "+" d | "(" n ")"\nd: /[0-9]/')


def crowd(ask: Callable[..., Request]) -> list[Request]:
    """Requests of all kinds, most of which follow grammars."""
    draw = random.Random(3)
    styles: list[dict[str, Any]] = [
        {"grammar": JSON},
        {},
        {"grammar": WORD, "temperature": 1.0, "logprobs": 3},
        {"grammar": JSON, "temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.5},
        {"temperature": 1.0, "presence_penalty": 1.0, "logprobs": 2},
        {"grammar": SUM, "logit_bias": ((EOS, 5.0),), "stop": ("=",)},
        {"temperature": 0.7, "min_tokens": 5},
        {"grammar": CHOICE, "temperature": 1.0, "stream": True},
    ]
    return [
        ask(
            [draw.randrange(3, 250) for _ in range(draw.choice([1, 7, 16, 40]))],
            id=str(i),
            seed=i,
            **{"max_tokens": draw.choice([1, 2, 20, 40])} | styles[i % len(styles)],
        )
        for i in range(40)
    ]
