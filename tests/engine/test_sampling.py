"""Drawing from given logits: the distribution, the filters and the penalties, against naive formulations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pressrun.engine import sequence
from pressrun.engine.request import Request, SamplingParams
from pressrun.engine.sampling import Drawing, Drawn, Sampler
from pressrun.kernels.noise import gumbel_noise, split_seed
from pressrun.kernels.reference import sample as reference

EOS = 5


def rows_of(sampler: Sampler, params: list[dict[str, Any]], tokens: list[int], num_prompt: int) -> np.ndarray:
    """Open a row for each set of parameters, all with the same tokens; their numbers, last row first."""
    sequences = []
    for i, fields in enumerate(params):
        fields = {"max_tokens": 99, "seed": i, **fields}
        request = Request(id=str(i), prompt=tokens[:num_prompt], params=SamplingParams(**fields))
        made = sequence.Sequence(request=request, seed=fields["seed"], tokens=np.array(tokens, np.int32))
        made.row = len(params) - 1 - i
        sequences.append(made)
    sampler.open(sequences)
    return np.array([made.row for made in sequences], np.int64)


def draw(
    params: list[dict[str, Any]], logits_V: Tensor, tokens: Sequence[int] = (7, 8, 8, 9), num_prompt: int = 2
) -> tuple[list[int], Any]:
    """One token for each set of parameters, all from the same logits after the same tokens."""
    sampler = Sampler(len(params), len(logits_V), 99, (EOS,), torch.device("cpu"))
    rows = rows_of(sampler, params, list(tokens), num_prompt)
    tokens, logprobs = drawn_by(sampler, logits_V.repeat(len(params), 1), rows, len(tokens))
    found = logprobs and logprobs.read(tokens.numpy(), [x.numpy() for x in logprobs.tensors])
    return tokens.tolist(), found


def drawn_by(sampler: Sampler, logits_SV: Tensor, rows: np.ndarray, position: int) -> tuple[Tensor, Any]:
    """Every line is drawn from, for these rows, at one position."""
    positions = np.full(len(rows), position, np.int64)
    tokens = sampler.draw(logits_SV, torch.from_numpy(rows), torch.from_numpy(positions))
    before = logits_SV.clone()
    drawing = Drawing(lines_D=np.arange(len(rows)), rows_D=rows, positions_D=positions)
    logprobs = sampler.amend(Drawn(logits_SV=logits_SV, tokens_S=tokens), drawing)
    assert torch.equal(logits_SV, before)
    assert sampler.drawn_R[rows].tolist() == tokens.tolist()
    return tokens, logprobs


def frequencies(params: dict[str, Any], logits_V: Tensor, num_draws: int) -> Tensor:
    tokens, _ = draw([{**params, "seed": seed} for seed in range(num_draws)], logits_V)
    return torch.bincount(torch.tensor(tokens), minlength=len(logits_V)) / num_draws


def naive(logits_V: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Probabilities by the textbook: temperature, then top_k, then top_p of what is left, then min_p."""
    probs = (logits_V.double() / temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    if top_k:
        order = order[:top_k]
    total, kept = sum(probs[i] for i in order), []
    for i in order:
        if sum(probs[j] for j in kept) >= top_p * total and kept:
            break
        kept.append(i)
    kept = [i for i in kept if probs[i] >= min_p * probs[order[0]]]
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"top_k": 6, "top_p": 0.6, "min_p": 0.05},
        {"top_p": 1e-6},
    ],
    ids=lambda filters: "-".join(filters) or "none",
)
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_tokens_are_drawn_as_often_as_the_textbook_says(
    filters: dict[str, Any], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few candidates that some of these filters need the whole vocabulary.
    monkeypatch.setattr(reference, "NUM_CANDIDATES", 4)
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    num_draws = 20000
    found = frequencies({"temperature": temperature, **filters}, logits_V, num_draws)
    expected = naive(logits_V, temperature=temperature, **filters)
    assert (found[expected == 0] == 0).all()
    # Five standard deviations of a binomial frequency.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / num_draws).sqrt() + 1e-9).all()


@pytest.mark.parametrize("num_candidates", [64, 500])
def test_the_filters_keep_what_the_textbook_keeps(num_candidates: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for case in range(60):
        logits_V = torch.randn(500, generator=generator) * (1 + case % 5)
        filters = {
            "top_k": [0, 1, 5, 64, 200][case % 5],
            "top_p": [1.0, 0.3, 0.9, 0.999][case % 4],
            "min_p": [0.0, 0.2, 0.001][case % 3],
        }
        top, ids = logits_V.topk(num_candidates)
        kept, enough = reference.kept_candidates(
            top[None],
            logits_V.logsumexp(-1)[None],
            *(torch.tensor([filters[n]]) for n in ("top_k", "top_p", "min_p")),
        )
        expected = set(naive(logits_V, temperature=1.0, **filters).nonzero()[:, 0].tolist())
        if bool(enough[0]) or num_candidates == 500:
            assert set(ids[kept[0]].tolist()) == expected
        else:
            assert filters["top_k"] in (0, 64, 200)


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(0))
    params = [{"temperature": 1.0, "seed": seed} for seed in (3, 1 << 40, 3, -7, 12)]
    params[2] |= {"top_p": 0.9}
    together, _ = draw([*params, {"temperature": 0.0}], logits_V)
    alone = [draw([fields], logits_V)[0][0] for fields in params]
    assert together[:-1] == alone
    assert together[-1] == int(logits_V.argmax())
    tokens = [7] * 40
    at_each = {draw([params[0]], logits_V, tokens[:n], 1)[0][0] for n in range(1, 40)}
    assert len(at_each) > 20


def test_a_filter_that_keeps_the_drawn_token_does_not_change_it() -> None:
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    free, _ = draw([{"temperature": 1.0, "seed": seed} for seed in range(50)], logits_V)
    filtered, _ = draw([{"temperature": 1.0, "seed": seed, "top_k": 10} for seed in range(50)], logits_V)
    kept = set(logits_V.topk(10).indices.tolist())
    assert all(a == b for a, b in zip(free, filtered, strict=True) if a in kept)


def test_noise_is_gumbel_distributed_and_independent() -> None:
    seeds = torch.tensor([split_seed(seed) for seed in range(40)], dtype=torch.int32)
    noise = gumbel_noise(seeds, torch.arange(40), torch.arange(20000)).double()
    assert noise.shape == (40, 20000)
    assert bool(noise.isfinite().all())
    # Mean: Euler's constant; variance: π² / 6; five standard errors of 800,000 samples.
    assert abs(noise.mean() - 0.5772157) < 5 * 1.2825 / math.sqrt(noise.numel())
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    assert (noise.neg().exp().neg().exp() < 0.25).double().mean() == pytest.approx(0.25, abs=0.003)
    correlations = torch.corrcoef(noise) - torch.eye(40)
    assert float(correlations.abs().max()) < 5 / math.sqrt(20000)


def test_seeds_that_differ_in_any_bit_give_other_noise() -> None:
    seeds = torch.tensor([split_seed(1 << bit) for bit in range(64)], dtype=torch.int32)
    noise = gumbel_noise(seeds, torch.zeros(64), torch.arange(8))
    assert len({tuple(row) for row in noise.tolist()}) == 64


PENALTIES: list[dict[str, Any]] = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.7},
    {"repetition_penalty": 1.8},
    {"presence_penalty": 0.4, "frequency_penalty": 0.3, "repetition_penalty": 0.6},
    {},
]


def naive_penalty(
    logits_V: Tensor,
    prompt: list[int],
    generated: list[int],
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    penalised = logits_V.clone()
    for token in {*prompt, *generated}:
        value = penalised[token]
        penalised[token] = value / repetition_penalty if value > 0 else value * repetition_penalty
    for token in set(generated):
        penalised[token] -= presence_penalty + frequency_penalty * generated.count(token)
    return penalised


def test_penalties_are_the_naive_ones_at_every_step_and_after_a_row_changes_hands() -> None:
    generator = torch.Generator().manual_seed(5)
    sampler = Sampler(len(PENALTIES), 30, 99, (EOS,), torch.device("cpu"))
    for turn in range(2):
        prompt, generated = [3, 4, 4 + turn], [9, 9, 3][: 3 * turn]
        shuffled = [PENALTIES[(i + turn) % len(PENALTIES)] for i in range(len(PENALTIES))]
        params = [{"temperature": 0.0, **fields} for fields in shuffled]
        rows = rows_of(sampler, params, prompt + generated, len(prompt))
        histories = [list(generated) for _ in params]
        for step in range(12):
            logits_DV = torch.randn(len(params), 30, generator=generator) * 0.5
            expected = [
                int(naive_penalty(logits_DV[i], prompt, history, **shuffled[i]).argmax())
                for i, history in enumerate(histories)
            ]
            drawn = drawn_by(sampler, logits_DV, rows, len(prompt) + len(generated) + step)[0].tolist()
            assert drawn == expected
            for history, token in zip(histories, drawn, strict=True):
                history.append(token)


def test_ending_tokens_are_masked_until_min_tokens() -> None:
    logits_V = torch.zeros(20)
    logits_V[EOS], logits_V[11], logits_V[2] = 3.0, 2.0, 1.0
    greedy = {"temperature": 0.0}
    params = [
        greedy,
        greedy | {"min_tokens": 3},
        greedy | {"min_tokens": 2},
        greedy | {"min_tokens": 3, "stop_token_ids": (11,)},
        greedy | {"min_tokens": 3, "ignore_eos": True},
    ]
    # Two tokens are generated already: the one to be drawn is the third.
    assert draw(params, logits_V)[0] == [EOS, 11, EOS, 2, EOS]


def test_logprobs_are_the_models_own_before_penalties_and_temperature() -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(2))
    params = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logprobs": 3, "repetition_penalty": 1.7},
        {"temperature": 2.0, "logprobs": 0, "seed": 5},
    ]
    tokens, logprobs = draw(params, logits_V)
    expected = logits_V.log_softmax(-1)
    assert set(logprobs) == {1, 2}
    for i, count in ((1, 3), (2, 0)):
        assert logprobs[i].token_id == tokens[i]
        assert logprobs[i].logprob == pytest.approx(float(expected[tokens[i]]), abs=1e-6)
        values, ids = expected.topk(count)
        assert [id for id, _ in logprobs[i].top] == ids.tolist()
        assert [value for _, value in logprobs[i].top] == pytest.approx(values.tolist(), abs=1e-6)


def test_greedy_rows_cost_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "gumbel_noise", None)
    logits_V = torch.arange(10.0)
    assert draw([{"temperature": 0.0, "top_p": 0.5}, {"temperature": 1e-9}], logits_V)[0] == [9, 9]


def test_warming_up_draws_for_nobodys_row() -> None:
    sampler = Sampler(3, 10, 99, (EOS,), torch.device("cpu"))
    sampler.drawn_R.fill_(7)
    sampler.warm_up(torch.bfloat16)
    assert sampler.drawn_R.tolist() == [7, 7, 7, 0]
