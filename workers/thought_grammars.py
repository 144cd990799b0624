"""Grammars for models that think: a thought first, as free text, and then the answer that a grammar asks for.

In llguidance's variant of Lark. A special token is not text there and has to be named by its id. Knows nothing of what
the answer is to be.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from .parsing.style import Style

ANY_TEXT = r"TEXT: /(.|\n)*/"


def after_thought(grammar: str, style: Style, *, thinks: bool) -> str:
    """The grammar with a thought before it, which may be left out unless the prompt `thinks` already.

    As it was for a model that does not think.
    """
    tags = style.thoughts
    if tags is None:
        return grammar
    start = "thought GAP @answer" if thinks else f"({literal(tags.open, style)} thought GAP)? @answer"
    rules = [f"start: {start}", text_up_to(tags.close, style, "thought"), ANY_TEXT, r"GAP: /\s*/"]
    return _joined("\n".join(rules), grammar)


@functools.lru_cache(maxsize=256)
def _joined(rules: str, grammar: str) -> str:
    """One grammar of rules that refer to another grammar as `@answer`."""
    is_json = grammar.lstrip().startswith("{")  # Lark otherwise, of which no rule begins so.
    answer: list[dict[str, Any]] = json.loads(grammar)["grammars"] if is_json else [{"lark_grammar": grammar}]
    return json.dumps({"grammars": [{"lark_grammar": rules}, answer[0] | {"name": "answer"}, *answer[1:]]})


def text_up_to(marker: str, style: Style, name: str) -> str:
    """The rule `name` for any `TEXT` up to the end of a marker, of which there is none before."""
    lazy = "" if marker in style.markers else "[lazy]"
    return f"{name}{lazy}: TEXT {literal(marker, style)}"


def literal(text: str, style: Style) -> str:
    """A text as rules have it."""
    return f"<[{style.markers[text]}]>" if text in style.markers else json.dumps(text)
