"""Biases, allowed ids and bad words: token by token what a naive formulation says, in any company."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pressrun.engine import sequence
from pressrun.engine.constraints import Constraints
from pressrun.engine.refusals import MAX_BAD_WORD_TOKENS, find_fault
from pressrun.engine.request import ModelInfo, Request, SamplingParams

Ask = Callable[..., Request]
Make = Callable[..., Any]
INFO = ModelInfo(max_model_len=256, vocab_size=256, eos_token_ids=(2,))

at_once_and_late = pytest.mark.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)


def naive(
    logits: Sequence[float],
    generated: list[int],
    logit_bias: tuple[tuple[int, float], ...] = (),
    allowed_token_ids: tuple[int, ...] = (),
    bad_words_token_ids: tuple[tuple[int, ...], ...] = (),
) -> list[float]:
    """One line of logits, constrained by the letter of vLLM's documentation."""
    line = list(logits)
    if allowed_token_ids:
        line = [logit if token in allowed_token_ids else float("-inf") for token, logit in enumerate(line)]
    for *before, last in bad_words_token_ids:
        if generated[len(generated) - len(before) :] == before:
            line[last] = float("-inf")
    for token, bias in logit_bias:
        line[token] += bias
    return line


ASKED: list[dict[str, Any]] = [
    {"logit_bias": ((3, 2.5), (7, -100.0), (0, 0.25))},
    {"allowed_token_ids": (4, 9, 9, 1)},
    {"bad_words_token_ids": ((5,), (6, 5), (8, 8, 8), (1, 0))},
    # Words that end alike, of which one is about to be completed.
    {"bad_words_token_ids": ((8, 3), (9, 3), (8, 8, 3))},
    {"bad_words_token_ids": ((8, 8, 8),), "logit_bias": ((8, 100.0),), "allowed_token_ids": (8, 9)},
]


def opened(
    asked: list[dict[str, Any]], prompt: list[int], generated: list[int], device: str = "cpu"
) -> tuple[Constraints, np.ndarray]:
    """Constraints whose last row is the first of `asked`, and the rows."""
    constraints = Constraints(len(asked), torch.device(device))
    for i, fields in enumerate(asked):
        open_row(constraints, len(asked) - 1 - i, fields, prompt, generated)
    return constraints, np.arange(len(asked))[::-1].copy()


def open_row(
    constraints: Constraints, row: int, fields: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    request = Request(id=str(row), prompt=prompt, params=SamplingParams(max_tokens=99, **fields))
    tokens = np.array(prompt + generated, np.int32)
    constraints.open(sequence.Sequence(request=request, seed=0, tokens=tokens), row)


def applied(constraints: Constraints, logits_nV: Tensor, rows: np.ndarray) -> Tensor:
    constrained = logits_nV.clone()
    constraints.apply(constrained, rows)
    return constrained


def test_constraints_are_the_naive_ones_at_every_step_and_after_a_row_changes_hands() -> None:
    generator = torch.Generator().manual_seed(2)
    prompt = [8, 8]  # which is not part of a bad word: only what is generated counts
    constraints, rows = opened(ASKED, prompt, [])
    for turn in range(3):
        asked = ASKED[turn:] + ASKED[:turn]
        generated = [9, 8, 8][: 2 * turn]
        for row, fields in zip(rows, asked, strict=True):
            open_row(constraints, int(row), fields, prompt, generated)
        histories = [list(generated) for _ in asked]
        for _ in range(40):
            logits_nV = torch.randn(len(asked), 10, generator=generator)
            found = applied(constraints, logits_nV, rows)
            lines = zip(logits_nV.tolist(), histories, asked, strict=True)
            expected = torch.tensor([naive(logits, history, **fields) for logits, history, fields in lines])
            assert torch.equal(found, expected)
            # Few tokens, so that words are often about to be completed.
            drawn = torch.tensor([8, 8, 9, 6, 1])[torch.randint(5, (len(asked),), generator=generator)]
            constraints.count(drawn, rows)
            for history, token in zip(histories, drawn.tolist(), strict=True):
                history.append(token)


def test_the_longest_bad_word_is_seen_whole() -> None:
    word = tuple(range(3, 3 + MAX_BAD_WORD_TOKENS))
    constraints, rows = opened([{"bad_words_token_ids": (word,)}] * 2, [3], list(word[1:-1]))
    logits_nV = torch.zeros(2, 256)
    assert torch.equal(applied(constraints, logits_nV, rows), logits_nV)
    open_row(constraints, 1, {"bad_words_token_ids": (word,)}, [3], [*word[:-1]])
    assert (applied(constraints, logits_nV, rows) == float("-inf")).nonzero().tolist() == [[0, word[-1]]]


def oracle(engine: Any, ask: Ask, prompt: list[int], num_tokens: int, asked: dict[str, Any]) -> list[int]:
    """Greedy tokens, each from the log-probabilities of a request of its own for one token."""
    generated: list[int] = []
    for _ in range(num_tokens):
        request = ask([*prompt, *generated], max_tokens=1, ignore_eos=True, logprobs=INFO.vocab_size)
        (entry,) = engine.finish([request])["a"].logprobs
        logprobs = dict(entry.top)
        line = naive([logprobs[token] for token in range(INFO.vocab_size)], generated, **asked)
        generated.append(max(range(len(line)), key=line.__getitem__))
    return generated


@at_once_and_late
def test_a_crowd_with_constraints_draws_as_each_would_alone_step_by_step(
    tiny: Path, make_engine: Make, ask: Ask
) -> None:
    roomy = make_engine(tiny)
    draw = random.Random(4)
    prompts = [[draw.randrange(3, 256) for _ in range(draw.randint(3, 20))] for _ in range(8)]
    asked: list[dict[str, Any]] = []
    for i, prompt in enumerate(prompts):
        free = oracle(roomy, ask, prompt, 6, {})
        words = ((free[0],), tuple(free[1:3]), tuple(free[2:5]))
        asked.append(
            [
                {"bad_words_token_ids": words},
                {"logit_bias": ((17, 3.0), *((token, -1.5) for token in sorted(set(free))))},
                {"allowed_token_ids": tuple(range(3, 60, 2)), "bad_words_token_ids": words},
                {"bad_words_token_ids": tuple((a, b) for a in free for b in free)},
            ][i % 4]
        )
        assert oracle(roomy, ask, prompt, 6, asked[-1]) != free
    expected = {str(i): oracle(roomy, ask, p, 12, a) for i, (p, a) in enumerate(zip(prompts, asked, strict=True))}
    requests = [
        ask(prompt, id=str(i), max_tokens=12, ignore_eos=True, **fields)
        for i, (prompt, fields) in enumerate(zip(prompts, asked, strict=True))
    ]
    small = make_engine(tiny, crowded=True, num_pages=20, page_size=4, max_num_batched_tokens=32)
    crowd = small.finish(requests, arrivals=random.Random(1))
    assert small.load().num_preemptions > 0
    assert {id: output.token_ids for id, output in crowd.items()} == expected


@at_once_and_late
def test_a_row_has_no_constraints_of_the_one_before(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, max_num_seqs=1)
    requests = [ask([5, 6], id="plain"), ask([5, 6], id="one token", allowed_token_ids=(9,)), ask([5, 6], id="again")]
    outputs = engine.finish(requests)
    assert outputs["one token"].token_ids == [9] * 8
    assert outputs["again"].token_ids == outputs["plain"].token_ids


def test_a_small_bias_counts_beside_large_logits_in_half_precision(
    tiny: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near 32, bfloat16 has no number between logits 0.25 apart."""
    engine = make_engine(tiny, dtype="bfloat16")
    model = engine._runner._model
    equal = torch.full((1, 256), 32.0, dtype=torch.bfloat16)
    monkeypatch.setattr(model, "logits", lambda hidden_SE, out=None: equal.repeat(len(hidden_SE), 1))
    assert engine.finish([ask([5], max_tokens=2, logit_bias=((77, 0.01),))])["a"].token_ids == [77, 77]


def test_ending_tokens_stay_forbidden_until_min_tokens_beside_a_bias(tiny: Path, make_engine: Make, ask: Ask) -> None:
    output = make_engine(tiny).finish([ask([5, 6], max_tokens=9, min_tokens=4, logit_bias=((2, 100.0),))])["a"]
    assert (len(output.token_ids), output.token_ids[-1], output.finish_reason) == (5, 2, "stop")


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"logit_bias": ((256, 1.0),)}, "logit_bias", "token 256 is not in the model's vocabulary"),
        ({"allowed_token_ids": (3, 999)}, "allowed_token_ids", "token 999"),
        ({"bad_words_token_ids": ((3, -1),)}, "bad_words", "token -1"),
        ({"bad_words_token_ids": ((),)}, "bad_words", "one has 0 tokens"),
        ({"bad_words_token_ids": ((3,) * 33,)}, "bad_words", "one has 33 tokens, and 1 to 32 are allowed"),
        ({"bad_words_token_ids": ((5, 7), (8,)), "allowed_token_ids": (7, 8)}, "allowed_token_ids", "allow one more"),
        ({"min_tokens": 1, "allowed_token_ids": (2,)}, "allowed_token_ids", "before min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": (9,), "allowed_token_ids": (2, 9)}, "allowed_token_ids", "allow one"),
        ({"bad_words_token_ids": tuple((token,) for token in range(256))}, "bad_words", "leave no token"),
    ],
)
def test_what_no_token_could_satisfy_is_refused_by_field(
    tiny: Path, make_engine: Make, ask: Ask, fields: dict[str, Any], field: str, said: str
) -> None:
    fault = find_fault(SamplingParams(max_tokens=5, **fields), INFO)
    assert fault is not None
    assert fault.field == field
    assert said in fault.reason
    outputs = make_engine(tiny).finish([ask([5], id="good"), ask([5], id="bad", **fields)])
    assert outputs["bad"].error == f"{field}: {fault.reason}"
    assert outputs["good"].finish_reason != "error"


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": (2,)},
        {"min_tokens": 1, "ignore_eos": True, "allowed_token_ids": (2,)},
        {"bad_words_token_ids": ((5, 7), (8,)), "allowed_token_ids": (7, 8, 9)},
        {"logit_bias": ((255, -100.0), (0, 100.0))},
        {"bad_words_token_ids": ((3,) * 32,)},
    ],
)
def test_what_leaves_a_token_is_not_refused(fields: dict[str, Any]) -> None:
    assert find_fault(SamplingParams(max_tokens=5, **fields), INFO) is None


@pytest.mark.gpu
def test_on_a_gpu_constraints_are_the_same_and_wait_for_nothing() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    here, rows = opened(ASKED, [8], [9])
    there, _ = opened(ASKED, [8], [9], "cuda")
    steps = [(torch.randn(5, 1000), torch.randint(5, 10, (5,))) for _ in range(20)]
    on_gpu = [(logits.cuda(), drawn.cuda()) for logits, drawn in steps]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That it does not find every wait.
        torch.cuda.set_sync_debug_mode("error")
    try:
        open_row(there, 4, ASKED[0], [8], [9])
        for logits_nV, drawn_n in on_gpu:
            found.append(applied(there, logits_nV, rows))
            there.count(drawn_n, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (logits_nV, drawn_n), result in zip(steps, found, strict=True):
        assert torch.equal(result.cpu(), applied(here, logits_nV, rows))
        here.count(drawn_n, rows)
