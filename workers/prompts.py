"""From a line's body to engine requests: fields, model, chat template, tokens, and whether it all fits.

A line that cannot be served becomes a result that says why; it never stops its neighbours.
Knows nothing of Redis, nor of when a line runs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine.expand import expand
from ..engine.request import EMBEDDING_PARAMS, Embedding, ModelInfo, Request, SamplingParams
from ..jobs.alike import Alike, Kind
from ..jobs.embeddings import EmbeddingRequest
from ..jobs.errors import UserError
from ..jobs.generation import NO_DEFAULTS, Defaults
from ..jobs.line_options import LineOptions, line_options
from ..jobs.lines import refused
from ..jobs.records import RESPONSES, Line, LineResult
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from ..jobs.response_requests import in_own_terms
from ..jobs.twins import digest_of
from .asked import Asked, Body, known_tokens
from .chats import messages_of
from .deltas import Parser, PlainParser
from .embeddings import asked_of, check_size
from .lengths import most_tokens
from .parsing.style import PLAIN, Style, parser_of
from .prompt_logprobs import check_scores
from .rendering import PLAINLY, Rendering

log = logging.getLogger(__name__)
# Of an answer that echoes: a line of megabytes times 128 choices would fill a worker's memory, and Redis.
MAX_ECHOED_TOKENS = 2**20
# Of a prompt, enough to hold the tag that opens a thought.
TAIL_TOKENS = 16
# Between the priorities of different kinds of work: a request's own priority counts among its kind.
PRIORITY_STEP = 1000


class Tokenizer(Protocol):
    """What a tokenizer does. All methods are thread-safe; text from users never becomes a special token."""

    @property
    def chat_template(self) -> str:
        """The source of the chat template, "" if there is none."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of the special tokens by their text."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> Sequence[Sequence[int]]: ...
    def encode_words(self, words: Sequence[str]) -> Sequence[Sequence[int]]:
        """The ids of pieces of text, with nothing that belongs around a whole prompt."""

    def chat(self, messages: Sequence[dict[str, Any]], how: Rendering = PLAINLY) -> Sequence[int]:
        """The ids of a conversation up to where the answer begins. Raises ValueError if the template refuses it."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> str:
        """The text of tokens; of special ones that are skipped, those in `keep` stay."""

    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A line that is ready to run: `body.n` choices of every prompt, or its `embedding`; `params` go with `prompts`.

    Lines with the same `twin` are bound to get the same answer. After `timeout_s` in the engine it is given up. The
    model writes in its `style`; where it `thinks` the prompt ends within a thought.
    """

    line: Line
    body: Body | EmbeddingRequest
    prompts: tuple[Sequence[int], ...]
    params: tuple[SamplingParams, ...]
    embedding: Embedding | None = None
    twin: bytes | None = None
    timeout_s: float | None = None
    style: Style = PLAIN
    thinks: bool = False

    def new_parser(self) -> Parser:
        """What reads the text of one choice."""
        body = self.body
        if not isinstance(body, ChatCompletionRequest):
            return PlainParser()
        parallel = body.parallel_tool_calls is not False
        return parser_of(self.style, body.offered, parallel=parallel, thinks=self.thinks)

    @property
    def is_plain(self) -> bool:
        """Whether all that a choice says are words: the parser would find nothing else."""
        if self.style.thoughts is not None:
            return False
        return self.style.tools is None or not isinstance(self.body, ChatCompletionRequest) or not self.body.offered

    @property
    def kept_tokens(self) -> frozenset[int]:
        """The special tokens that the parser must see."""
        if self.is_plain:
            return frozenset()
        body = self.body
        return (
            self.style.kept(with_tools=bool(body.offered)) if isinstance(body, ChatCompletionRequest) else frozenset()
        )

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.body.n

    def requests(self, name: str, priority: int) -> list[Request]:
        """The engine requests, choices of one prompt side by side; their ids are `name.0`, `name.1`, …

        `priority` is that of its kind of work.
        """
        n, priority = self.body.n, priority * PRIORITY_STEP + self.body.priority
        made = []
        for place, (prompt, params) in enumerate(zip(self.prompts, self.params, strict=True)):
            request = Request(
                id=f"{name}.{place}" if n == 1 else name,
                prompt=prompt,
                params=params,
                priority=priority,
                stream=self.body.stream,
                embedding=self.embedding,
            )
            made += [request] if n == 1 else expand(request, n, first=place * n)
        return made


class Prompts:
    """Prepares lines for one model; its `defaults` hold for what they leave out. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        info: ModelInfo,
        model: str,
        style: Style = PLAIN,
        defaults: Defaults = NO_DEFAULTS,
    ) -> None:
        self.tokenizer = tokenizer
        self.info = info
        self.model = model
        self.style = style
        self.defaults = defaults

    def prepare(self, lines: Sequence[Line]) -> list[Prepared | LineResult]:
        """Each line ready to run, or its refusal."""
        alike, asked = Alike(self.defaults.sampling), dict[Kind, Asked]()
        return [self._prepare(line, alike, asked, may_stream=False) for line in lines]

    def prepare_online(self, line: Line) -> Prepared | LineResult:
        """The same for an online request, which may ask for its answer piece by piece."""
        return self._prepare(line, Alike(self.defaults.sampling), {}, may_stream=True)

    def _prepare(
        self, line: Line, alike: Alike, known: dict[Kind, Asked], *, may_stream: bool
    ) -> Prepared | LineResult:
        """`known` is what was found out for earlier lines that are like it."""
        try:
            options = line_options(line.options)
            parsed = alike.parse(line.url, line.body)
            body = parsed.request
            self._check_model(body, may_stream=may_stream)
            if isinstance(body, EmbeddingRequest):
                return self._prepare_embedding(line, body, options)
            self._check_generates(body)
            asked = self._asked(body, parsed.kind, known)
            prompts = self.tokens(body, asked)
            ending = self._ending(prompts[0]) if isinstance(body, ChatCompletionRequest) else ""
            thinks, has_thought = self._opens_a_thought(ending), self._ends_a_thought(ending)
            grammar = asked.grammar(thinks=thinks, has_thought=has_thought)
            params = tuple([asked.params(self._most_tokens(body, prompt), grammar) for prompt in prompts])
            _check_echo(body, prompts)
            check_scores(body, prompts)
            twin = digest_of(line.url, body, shown=line.body if line.url == RESPONSES else None)
        except UserError as error:
            return refused(line, in_own_terms(error) if line.url == RESPONSES else error)
        except Exception:
            # The edge of one line: whatever a tokenizer or template does with it, its neighbours are to run.
            log.exception("line %d (%r) could not be prepared", line.index, line.custom_id)
            return refused(line, UserError("The request could not be prepared.", status=500, code="server_error"))
        return Prepared(
            line=line,
            body=body,
            prompts=prompts,
            params=params,
            twin=twin,
            timeout_s=options.timeout_s,
            style=self.style,
            thinks=thinks,
        )

    def _asked(self, body: Body, kind: Kind | None, known: dict[Kind, Asked]) -> Asked:
        asked = None if kind is None else known.get(kind)
        if asked is None:
            asked = Asked(body, words=self.tokenizer, info=self.info, style=self.style)
            if kind is not None:
                known[kind] = asked
        return asked

    def _prepare_embedding(self, line: Line, body: EmbeddingRequest, options: LineOptions) -> Prepared:
        embedding = asked_of(body, self.info)
        prompts = self._given(body.input, "input")
        check_size(prompts, embedding, self.info)
        return Prepared(
            line=line,
            body=body,
            prompts=prompts,
            params=(EMBEDDING_PARAMS,) * len(prompts),
            embedding=embedding,
            twin=digest_of(line.url, body),
            timeout_s=options.timeout_s,
        )

    def _check_generates(self, body: Body) -> None:
        if not self.info.generates:
            message = f"The model `{body.model}` gives embeddings only, at /v1/embeddings."
            raise UserError(message, param="model", code="invalid_value")

    def _check_model(self, body: Body | EmbeddingRequest, *, may_stream: bool) -> None:
        if body.model != self.model:
            message = f"The model `{body.model}` does not exist or you do not have access to it."
            raise UserError(message, param="model", code="model_not_found", status=404)
        if body.stream and not may_stream:
            raise UserError(
                "Streaming is not supported in the Batch API.", param="stream", code="streaming_unsupported"
            )

    def tokens(self, body: Body, asked: Asked | None = None) -> tuple[Sequence[int], ...]:
        """The token ids of each prompt. Raises UserError where there are none."""
        if isinstance(body, ChatCompletionRequest):
            how = (asked or self._asked(body, None, {})).rendering
            try:
                return (self.tokenizer.chat(messages_of(body), how),)
            except ValueError as error:
                raise UserError(
                    f"The model's chat template refuses this conversation: {error}", param="messages"
                ) from error
        return self._given(body.prompt, "prompt", add_special_tokens=body.add_special_tokens)

    def _given(
        self, prompt: str | Sequence[str | int | list[int]], param: str, *, add_special_tokens: bool = True
    ) -> tuple[Sequence[int], ...]:
        """What may be one text or several, the tokens of one or of several, as tokens."""
        if isinstance(prompt, str):
            prompt = [prompt]
        if isinstance(prompt[0], str):
            texts = [text for text in prompt if isinstance(text, str)]
            return tuple(self.tokenizer.encode(texts, add_special_tokens=add_special_tokens))
        if isinstance(prompt[0], int):
            return (self.known([token for token in prompt if isinstance(token, int)], param),)
        return tuple(self.known(tokens, param) for tokens in prompt if isinstance(tokens, list))

    def _ending(self, prompt: Sequence[int]) -> str:
        """The end of a prompt, of models that think: it may begin a thought, or have it done with."""
        if self.style.thoughts is None:
            return ""
        return self.tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()

    def _opens_a_thought(self, ending: str) -> bool:
        return self.style.thoughts is not None and ending.endswith(self.style.thoughts.open)

    def _ends_a_thought(self, ending: str) -> bool:
        return self.style.thoughts is not None and ending.endswith(self.style.thoughts.close)

    def _most_tokens(self, body: Body, prompt: Sequence[int]) -> int:
        return most_tokens(body, len(prompt), context=self.info.max_model_len, defaults=self.defaults)

    def known(self, tokens: list[int], param: str) -> list[int]:
        """The same tokens. Raises UserError for one that the model does not have."""
        return known_tokens(tokens, param, self.info)


def _check_echo(body: Body, prompts: Sequence[Sequence[int]]) -> None:
    echoed = sum(map(len, prompts)) * body.n
    if isinstance(body, CompletionRequest) and body.echo and echoed > MAX_ECHOED_TOKENS:
        message = f"Invalid value for 'echo': the choices would repeat {echoed} tokens of the prompts, and at most"
        message += f" {MAX_ECHOED_TOKENS} are allowed. Ask for fewer choices or prompts."
        raise UserError(message, param="echo", code="invalid_value")
