"""How the model of a worker writes its thoughts and calls, and the parser that reads an answer accordingly.

Settings say it, or the model's chat template and special tokens do. Knows nothing of requests' fields but of tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...jobs.settings import Settings
from ...jobs.tools import Tool
from ..deltas import Delta, Parser, PlainParser
from . import hermes, llama3, mistral, qwen3_coder, thoughts
from .calls import Calls
from .source import Reading, Source
from .thoughts import Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way to write calls: who reads it, and the special tokens that a model may write it with."""

    read: Callable[[Source, Calls], Iterator[Delta | None]]
    markers: tuple[str, ...]
    short_ids: bool = False


FORMATS: Mapping[str, Format] = {
    "hermes": Format(read=hermes.read, markers=(hermes.OPEN, hermes.CLOSE)),
    "llama3": Format(read=llama3.read, markers=(llama3.TAG,)),
    "mistral": Format(read=mistral.read, markers=(mistral.MARKER, mistral.ARGS, mistral.CALL_ID), short_ids=True),
    "qwen3_coder": Format(read=qwen3_coder.read, markers=(hermes.OPEN, hermes.CLOSE)),
}
TAGS: Mapping[str, Tags] = {
    "think": Tags(open="<think>", close="</think>"),
    "mistral": Tags(open="[THINK]", close="[/THINK]"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One model's way: of writing calls, a name in `FORMATS`, and thoughts; None where it has none.

    `markers` are the special tokens among those that it is written with, by their text; `close_id` is the token that
    ends a thought, if it is a single one. `template` is the source of
    the chat template; whether a request may bring another is `trusts_templates`.
    """

    tools: str | None = None
    thoughts: Tags | None = None
    markers: Mapping[str, int]
    close_id: int | None = None
    template: str = ""
    trusts_templates: bool = False

    def kept(self, *, with_tools: bool) -> frozenset[int]:
        """The special tokens that must stay in a text for its thoughts, and its calls, to be read."""
        texts = [self.thoughts.open, self.thoughts.close] if self.thoughts else []
        texts += FORMATS[self.tools].markers if with_tools and self.tools else []
        return frozenset(self.markers[text] for text in texts if text in self.markers)

    def knows(self, variable: str, template: str | None = None) -> bool:
        """Whether the chat template, or the one that a request brings, makes use of a variable."""
        return re.search(rf"(?<!\w){re.escape(variable)}(?!\w)", template or self.template) is not None


PLAIN = Style(markers={})


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def chat_template(self) -> str:
        """The source of the chat template, "" if there is none."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of the special tokens by their text."""

    def encode_words(self, words: Sequence[str]) -> Sequence[Sequence[int]]:
        """The ids of pieces of text."""


def style_of(settings: Settings, vocabulary: Vocabulary) -> Style:
    """The style that the settings name, or that can be told from the template."""
    template = vocabulary.chat_template
    tools, thinking = settings.tool_call_parser, settings.reasoning_parser
    format_name = _guess(template) if tools == "auto" else tools
    tags = _guess_tags(template) if thinking == "auto" else TAGS.get(thinking)
    written = [*FORMATS[format_name].markers] if format_name in FORMATS else []
    written += [tags.open, tags.close] if tags else []
    closing = vocabulary.encode_words([tags.close])[0] if tags else []
    return Style(
        close_id=closing[0] if len(closing) == 1 else None,
        tools=format_name if format_name in FORMATS else None,
        thoughts=tags,
        markers={text: vocabulary.special_tokens[text] for text in written if text in vocabulary.special_tokens},
        template=template,
        trusts_templates=settings.trust_request_chat_template,
    )


def _guess(template: str) -> str:
    if mistral.MARKER in template:
        return "mistral"
    if hermes.OPEN in template:
        return "qwen3_coder" if "<function=" in template else "hermes"
    if llama3.TAG in template or ("<|start_header_id|>" in template and "parameters" in template):
        return "llama3"
    return "none"


def _guess_tags(template: str) -> Tags | None:
    return next((tags for tags in TAGS.values() if tags.close in template), None)


def parser_of(style: Style, tools: list[Tool], *, parallel: bool = True, thinks: bool = False) -> Parser:
    """A parser for one choice. `tools` are those on offer; with `thinks` the prompt has opened a thought."""
    inner: Parser = PlainParser()
    tags = style.thoughts
    if tools and style.tools is not None:
        way = FORMATS[style.tools]
        schemas = {tool.function.name: tool.function.parameters or {} for tool in tools}
        calls = Calls(schemas, parallel=parallel, short_ids=way.short_ids)
        inner = Reading(lambda source: way.read(source, calls))
    if tags is None:
        return inner
    return Reading(lambda source: thoughts.read(source, tags, inner, opened=thinks))
