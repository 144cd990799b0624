"""What goes into the engine and what comes out: plain data, no tensors, safe to send between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .packed import packed

FinishReason = Literal["stop", "length", "abort", "error"]


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is drawn. Names and meanings are OpenAI's and vLLM's; the caller has checked the ranges.

    With `max_tokens` 0 only the prompt is computed. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every
    token. `logprobs` is the number of top alternatives to report beside each drawn token (0: only the drawn one; None:
    none at all).

    `logit_bias` pairs token ids with what is added to their logits. With `allowed_token_ids` no other is drawn.
    `bad_words_token_ids` are token sequences of which none is ever completed. `grammar` is what the whole text must
    follow, as llguidance writes grammars. `prompt_logprobs` asks for the prompt's tokens what
    `logprobs` asks for the drawn ones.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str | None = None
    prompt_logprobs: int | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether single tokens are favoured or forbidden."""
        return bool(self.logit_bias or self.allowed_token_ids or self.bad_words_token_ids)

    def ending_ids(self, eos_token_ids: Sequence[int]) -> set[int]:
        """The tokens that end the sequence, and so are not drawn before `min_tokens`."""
        return {*(() if self.ignore_eos else eos_token_ids), *self.stop_token_ids}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Asks for one vector that stands for the whole prompt, of its first `dimensions`; None: of all."""

    dimensions: int | None = None


# Below this a priority is urgent: somebody waits for the first token.
URGENT = -500


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to complete. `n` choices of one prompt are `n` requests, which share its cached pages.

    Lower `priority` runs first, one below `URGENT` in the middle of a step; equals in rounds (`waiting.py`). With
    `stream` every step's tokens are reported, otherwise only the finished sequence. With an `embedding` the prompt is
    all that is computed, and its vector is the answer; `params` are `EMBEDDING_PARAMS` then.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    priority: int = 0
    stream: bool = False
    embedding: Embedding | None = None


# A prompt ends with the draw of one token, which nobody is told of.
EMBEDDING_PARAMS = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The log-probability of one drawn token, and the likeliest alternatives as (token id, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprob:
    """The same of a token of the prompt, after those before it; `rank` 1 is the likeliest."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """When a request came, first got a row, drew its first token and ended; None: it did not come to that.

    Seconds of a clock that all processes of one host share. `num_generated_tokens` are all of its tokens.
    """

    arrived_at: float
    admitted_at: float | None
    first_token_at: float | None
    ended_at: float
    num_prompt_tokens: int
    num_generated_tokens: int


@packed
@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """When a request came to the engine's loop, and when its first output left it, by the clock of `Lifetime`."""

    came_at: float
    left_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """New tokens of one request, since the last output of the same request.

    `finish_reason` is set on the last one: "stop" (end of sequence, stop token or stop string: `stop_reason` says
    which, None for end of sequence), "length", "abort", or "error" with `error` in words. The token that ended the
    sequence is included in `token_ids`. `num_cached_tokens` counts prompt tokens served from cached pages. An
    `embedding` is float32, little-endian. `lifetime` is on the last one too, unless the request was refused, and so are
    `prompt_logprobs`, of all prompt tokens but the first. The loop around an engine puts a `passage` on the first
    output of who is urgent.
    """

    id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    embedding: bytes | None = None
    lifetime: Lifetime | None = None
    passage: Passage | None = None


# During a long step an engine's owner is given outputs as they come, and may add and abort requests.
Attend = Callable[[list[Output]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full the engine is: what decides how many more requests its owner should hold ready."""

    num_rows: int
    num_running: int
    num_waiting: int
    num_free_pages: int
    num_pages: int
    page_size: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a caller must know of the loaded model to make requests that fit.

    Embeddings have `embedding_size` dimensions; 0: the model gives none. Not every one `generates`.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = field(default=())
    num_parameters: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    embedding_size: int = 0
    generates: bool = True
