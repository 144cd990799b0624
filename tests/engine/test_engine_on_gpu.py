"""The engine with its Triton kernels on a GPU, against transformers with the same real weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from pressrun.engine.request import Output, Request

from .spelling import crowd

pytestmark = [pytest.mark.gpu, pytest.mark.model]
NUM_PROMPTS, NUM_TOKENS, NUM_TOP = 16, 48, 5
# Log-probabilities before the first difference: bfloat16 keeps 8 bits, so logits near 20 are rounded by up to 0.06,
# in every one of the layers' sums.
LOGPROB_TOLERANCE = 0.35


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")


def theirs(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """transformers' greedy tokens, and the log-probabilities they were chosen from."""
    out = model.generate(
        torch.tensor([prompt], device="cuda"),
        max_new_tokens=NUM_TOKENS,
        min_new_tokens=NUM_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    # `logits` are as the model gave them, before the processor that forbids an early end.
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float().log_softmax(-1).cpu()


def ours(
    make_engine: Callable[..., Any], model: Path, prompts: list[list[int]], ask: Any, dtype: str, page_size: int
) -> list[Output]:
    """All prompts at once, under a pool that is too small for them."""
    sizes = {"num_pages": 1600 // page_size, "page_size": page_size, "max_num_batched_tokens": 300}
    engine = make_engine(model, dtype=dtype, device="cuda", crowded=True, **sizes)
    requests: list[Request] = [
        ask(prompt, id=str(i), max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, logprobs=NUM_TOP)
        for i, prompt in enumerate(prompts)
    ]
    outputs = engine.finish(requests)
    assert engine.load().num_preemptions > 0
    return [outputs[request.id] for request in requests]


@pytest.mark.parametrize(("dtype", "page_size"), [("float32", 16), ("bfloat16", 16), ("bfloat16", 64)])
def test_greedy_answers_agree_with_transformers(
    smollm2: Path, humaneval: list[str], make_engine: Callable[..., Any], ask: Any, dtype: str, page_size: int
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    prompts = [tokenizer.encode(text) for text in humaneval[:NUM_PROMPTS]]
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=getattr(torch, dtype)).cuda().eval()
    outputs = ours(make_engine, smollm2, prompts, ask, dtype, page_size)
    num_equal = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        their_tokens, their_logprobs = theirs(model, prompt)
        assert output.logprobs is not None
        for i, (mine, other) in enumerate(zip(output.token_ids, their_tokens, strict=True)):
            if mine != other:
                assert dtype == "bfloat16", f"float32 tokens differ at {i}"
                assert other in [token for token, _ in output.logprobs[i].top]
                assert mine in their_logprobs[i].topk(NUM_TOP).indices.tolist()
                break
            assert abs(output.logprobs[i].logprob - their_logprobs[i, mine].item()) < LOGPROB_TOLERANCE
        else:
            num_equal += 1
    print(f"{dtype}: {num_equal} of {len(prompts)} answers of {NUM_TOKENS} tokens are the same to the last token")


def test_smollm2_answers_a_question(smollm2: Path, make_engine: Callable[..., Any], ask: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    # In float32, because bfloat16's rounding is more than the lead of the first token of this answer.
    output = make_engine(smollm2, device="cuda").finish([ask(list(prompt), max_tokens=32)])["a"]
    answer = tokenizer.decode(output.token_ids, skip_special_tokens=True)
    print(answer)
    assert "Paris" in answer


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_way_of_running_a_step_draws_the_same_tokens(
    make_model: Callable[..., Path], make_engine: Callable[..., Any], ask: Any, model_type: str
) -> None:
    """Graphs or not, results at once or late, on the CPU: float32 leaves greedy tokens no choice.

    A draw turns when its lead is less than the rounding of sums in another order; few do.
    """
    sizes = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = make_model(model_type, max_position_embeddings=1024, **sizes)
    draw = random.Random(0)
    styles: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.1, "top_p": 0.9, "seed": 4},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.02, "seed": 5},
        {"temperature": 0.7, "frequency_penalty": 0.4, "logprobs": 2, "seed": 6},
        {"temperature": 0.9, "repetition_penalty": 1.2, "seed": 7},
        {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": -0.1, "min_tokens": 9, "seed": 8},
    ]
    requests = [
        ask(
            [draw.randrange(3, 256) for _ in range(draw.choice([1, 15, 16, 17, 40, 300]))],
            id=str(i),
            **{"max_tokens": draw.choice([1, 2, 30, 60]), "ignore_eos": i % 3 > 0} | styles[i % len(styles)],
        )
        for i in range(70)
    ]
    answers = {
        name: make_engine(model, page_size=16, max_num_batched_tokens=256, max_num_seqs=48, **settings).finish(
            requests, arrivals=random.Random(1)
        )
        for name, settings in {
            "cpu": {"device": "cpu"},
            "eager": {"device": "cuda", "enforce_eager": True, "async_scheduling": False},
            "graphs": {"device": "cuda"},
            "preempted": {"device": "cuda", "num_pages": 60, "crowded": True},
        }.items()
    }
    expected = answers.pop("cpu")
    for name, outputs in answers.items():
        different = [
            request
            for request in requests
            if (outputs[request.id].token_ids, outputs[request.id].finish_reason)
            != (expected[request.id].token_ids, expected[request.id].finish_reason)
        ]
        assert len(different) <= 2, name
        assert all(request.params.temperature > 0 for request in different), name


def test_every_way_of_running_a_step_follows_grammars_alike(
    speller: Path, make_engine: Callable[..., Any], ask: Any
) -> None:
    """As above, with most rows of a step held to a grammar."""
    decode = Tokenizer.from_file(str(speller / "tokenizer.json")).decode
    settings = {"page_size": 16, "max_num_batched_tokens": 64, "max_num_seqs": 24}
    answers = {
        name: make_engine(speller, decode=decode, **settings | ways).finish(crowd(ask), arrivals=random.Random(1))
        for name, ways in {
            "cpu": {"device": "cpu"},
            "eager": {"device": "cuda", "enforce_eager": True, "async_scheduling": False},
            "graphs": {"device": "cuda"},
            "preempted": {"device": "cuda", "num_pages": 12, "crowded": True},
        }.items()
    }
    expected = answers.pop("cpu")
    assert {output.finish_reason for output in expected.values()} == {"stop", "length"}
    for name, outputs in answers.items():
        different = [id for id, output in outputs.items() if output.token_ids != expected[id].token_ids]
        assert len(different) <= 2, name


def test_prompts_are_scored_as_on_a_cpu(tiny: Path, make_engine: Callable[..., Any], ask: Any) -> None:
    draw = random.Random(2)
    requests = [
        ask([draw.randrange(3, 256) for _ in range(10 + 9 * i)], id=str(i), prompt_logprobs=i % 3 or None, max_tokens=4)
        for i in range(12)
    ]
    settings = {"page_size": 16, "max_num_batched_tokens": 100, "max_num_seqs": 8}
    here, there = (make_engine(tiny, device=device, **settings).finish(requests) for device in ("cpu", "cuda"))
    for id, expected in here.items():
        assert there[id].token_ids == expected.token_ids
        pairs = zip(there[id].prompt_logprobs or (), expected.prompt_logprobs or (), strict=True)
        assert all(one.logprob == pytest.approx(other.logprob, abs=1e-3) for one, other in pairs)
