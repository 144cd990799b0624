"""The log-probabilities of prompts' own tokens, against transformers, however the prompt is computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pressrun.engine import prompt_logprobs
from pressrun.engine.expand import expand
from pressrun.engine.request import Output, PromptLogprob, Request

Ask = Callable[..., Request]
Make = Callable[..., Any]

at_once_and_late = pytest.mark.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)


def expected(model: Path, prompt: list[int], num_top: int) -> list[PromptLogprob]:
    """By the letter: a forward pass of transformers' model over the whole prompt."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs_TV = theirs(torch.tensor([prompt])).logits[0].log_softmax(-1)
    scored = []
    for token, logprobs_V in zip(prompt[1:], logprobs_TV, strict=False):
        values, ids = logprobs_V.topk(num_top)
        rank = int((logprobs_V > logprobs_V[token]).sum()) + 1
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        scored.append(PromptLogprob(token_id=token, logprob=float(logprobs_V[token]), rank=rank, top=top))
    return scored


def assert_same(output: Output, scored: list[PromptLogprob]) -> None:
    found = output.prompt_logprobs
    assert found is not None
    assert [(one.token_id, one.rank) for one in found] == [(one.token_id, one.rank) for one in scored]
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in scored], abs=1e-3)
    for one, other in zip(found, scored, strict=True):
        assert [id for id, _ in one.top] == [id for id, _ in other.top]
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-3)


def prompts(number: int) -> list[list[int]]:
    draw = random.Random(5)
    head = [draw.randrange(3, 256) for _ in range(20)]
    return [
        (head if i % 2 else []) + [draw.randrange(3, 256) for _ in range(draw.randint(1, 60))] for i in range(number)
    ]


@at_once_and_late
def test_every_token_of_a_prompt_is_scored_in_chunks_and_in_company(
    tiny: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "LINES_AT_ONCE", 7)
    engine = make_engine(tiny, max_num_batched_tokens=24)
    # Every third does not ask; some ask for fewer alternatives than others.
    counts = [None, 0, 3]
    requests = [
        ask(prompt, id=str(i), prompt_logprobs=counts[i % 3], max_tokens=3) for i, prompt in enumerate(prompts(12))
    ]
    outputs = engine.finish(requests, arrivals=random.Random(0))
    plain = make_engine(tiny).finish([ask(request.prompt, id=request.id, max_tokens=3) for request in requests])
    for request in requests:
        count, output = request.params.prompt_logprobs, outputs[request.id]
        assert output.token_ids == plain[request.id].token_ids
        if count is None:
            assert output.prompt_logprobs is None
        else:
            assert_same(output, expected(tiny, list(request.prompt), count))


@at_once_and_late
def test_a_preempted_prompt_is_scored_once(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, crowded=True, num_pages=40, page_size=4, max_num_batched_tokens=32)
    requests = [ask(prompt, id=str(i), prompt_logprobs=1, max_tokens=20) for i, prompt in enumerate(prompts(9))]
    outputs = engine.finish(requests)
    assert engine.load().num_preemptions > 0
    for request in requests:
        assert_same(outputs[request.id], expected(tiny, list(request.prompt), 1))


@at_once_and_late
def test_what_is_to_be_scored_is_computed_though_it_is_cached(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, page_size=4)
    prompt = prompts(2)[1]
    engine.finish([ask(prompt)])
    scored = engine.finish([ask(prompt, prompt_logprobs=2)])["a"]
    assert scored.num_cached_tokens == 0
    assert_same(scored, expected(tiny, prompt, 2))
    assert engine.finish([ask(prompt)])["a"].num_cached_tokens > 0


def test_the_first_choice_scores_for_all(tiny: Path, make_engine: Make, ask: Ask) -> None:
    outputs = make_engine(tiny).finish(expand(ask([5, 6, 7], prompt_logprobs=0, temperature=1.0), 3))
    assert [outputs[f"a.{i}"].prompt_logprobs is None for i in range(3)] == [False, True, True]


def test_a_prompt_of_one_token_has_nothing_to_score(tiny: Path, make_engine: Make, ask: Ask) -> None:
    assert make_engine(tiny).finish([ask([5], prompt_logprobs=3)])["a"].prompt_logprobs == []


@at_once_and_late
def test_a_prompt_that_is_only_read_is_scored_and_nothing_is_drawn(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, max_num_batched_tokens=24, page_size=4)
    requests = [
        ask(prompt, id=str(i), max_tokens=0, prompt_logprobs=1, logprobs=1, stream=i % 3 == 0)
        for i, prompt in enumerate(prompts(12))
    ]
    others = [ask(prompt, id=f"other {i}", max_tokens=5) for i, prompt in enumerate(prompts(4))]
    outputs = engine.finish([*requests, *others], arrivals=random.Random(0))
    for request in requests:
        output = outputs[request.id]
        assert (output.token_ids, output.logprobs, output.finish_reason) == ([], [], "length")
        assert output.lifetime is not None
        assert output.lifetime.num_generated_tokens == 0
        assert_same(output, expected(tiny, list(request.prompt), 1))
    assert engine.load().num_generated_tokens == sum(len(outputs[other.id].token_ids) for other in others)


def test_a_prompt_that_is_only_read_takes_one_step(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny)
    engine.add([ask([5, 6, 7], max_tokens=0, ignore_eos=True)])
    (output,) = engine.step()
    assert (output.finish_reason, engine.has_work()) == ("length", False)
