"""SmolLM2 with its real weights against transformers, token for token."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pressrun.engine.request import Output, Request
from pressrun.engine.tokenizer import Tokenizer

NUM_PROMPTS, NUM_TOKENS = 32, 64

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prompts(smollm2: Path, humaneval: list[str]) -> list[list[int]]:
    return Tokenizer(smollm2).encode(humaneval[:NUM_PROMPTS])


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def greedy_after(theirs: Any) -> Callable[[list[int], list[int]], list[int]]:
    """transformers' likeliest token after a prompt and after each of some `tokens` but the last.

    If they are `tokens`, then `tokens` is its greedy continuation: each is what it would have drawn next.
    """
    known: dict[tuple[int, ...], list[int]] = {}

    def likeliest(prompt: list[int], tokens: list[int]) -> list[int]:
        context = (*prompt, *tokens[:-1])
        if context not in known:
            with torch.inference_mode():
                logits = theirs(torch.tensor([context])).logits[0, len(prompt) - 1 :]
            known[context] = logits.argmax(-1).tolist()
        return known[context]

    return likeliest


@pytest.mark.parametrize("caching", [True, False])
def test_greedy_tokens_are_those_of_transformers_with_all_in_flight_and_preempted(
    smollm2: Path,
    prompts: list[list[int]],
    greedy_after: Callable[[list[int], list[int]], list[int]],
    make_engine: Callable[..., Any],
    ask: Callable[..., Request],
    caching: bool,
) -> None:
    # All together need some 340 pages.
    engine = make_engine(
        smollm2,
        crowded=True,
        num_pages=270,
        enable_prefix_caching=caching,
        max_num_seqs=NUM_PROMPTS,
        max_num_batched_tokens=512,
    )
    # Hardly two of the prompts begin alike, so a few come twice.
    prompts = prompts + prompts[:3]
    requests = [ask(prompt, id=str(i), max_tokens=NUM_TOKENS) for i, prompt in enumerate(prompts)]
    outputs = engine.finish(requests, arrivals=random.Random(0))
    assert engine.load().num_preemptions >= 3
    assert (engine.load().num_cached_tokens > 0) == caching
    for i, prompt in enumerate(prompts):
        tokens = outputs[str(i)].token_ids
        assert len(tokens) == NUM_TOKENS or tokens[-1] in engine.info.eos_token_ids
        assert tokens == greedy_after(prompt, tokens)


def test_greedy_tokens_are_those_that_transformers_generates(
    smollm2: Path,
    prompts: list[list[int]],
    theirs: Any,
    make_engine: Callable[..., Any],
    ask: Callable[..., Request],
) -> None:
    """Its own loop over its own cache, for a few prompts; the test above covers many."""
    outputs = make_engine(smollm2).finish(
        [ask(prompt, id=str(i), max_tokens=NUM_TOKENS) for i, prompt in enumerate(prompts[:2])]
    )
    for i, prompt in enumerate(prompts[:2]):
        generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False)
        assert outputs[str(i)].token_ids == generated[0, len(prompt) :].tolist()


def test_bfloat16_stays_as_close_to_transformers_as_rounding_allows(
    smollm2: Path, prompts: list[list[int]], make_engine: Callable[..., Any], ask: Callable[..., Request]
) -> None:
    """Up to the first token that differs log-probabilities agree; there each side's token is in the other's top 5."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    engine = make_engine(smollm2, dtype="bfloat16", num_pages=300)
    requests = [
        ask(prompt, id=str(i), max_tokens=24, logprobs=5, ignore_eos=True) for i, prompt in enumerate(prompts[:4])
    ]
    outputs = engine.finish(requests)
    for request in requests:
        assert_close_to(model, request, outputs[request.id])


def assert_close_to(model: Any, request: Request, output: Output) -> None:
    """Compare with the model run over the engine's own tokens at once."""
    prompt = list(request.prompt)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output.token_ids[:-1]])).logits[0, len(prompt) - 1 :].float()
    logprobs = logits.log_softmax(-1)
    assert output.logprobs is not None
    for theirs, ours in zip(logprobs, output.logprobs, strict=True):
        top = theirs.topk(5).indices.tolist()
        # bfloat16 keeps 8 bits, logits are up to 30, and their errors are those of 30 layers: a quarter was seen.
        assert ours.logprob == pytest.approx(float(theirs[ours.token_id]), abs=0.5)
        if ours.token_id != top[0]:
            assert ours.token_id in top
            assert top[0] in [id for id, _ in ours.top]
            return
