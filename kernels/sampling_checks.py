"""Checks of drawing against float64, on any device, with any implementation; a companion of `checks.py`.

A check raises AssertionError and otherwise returns nothing. Two draws of float32 may differ where two tokens' sums of
logit and noise, or a filter's limit and a token, are closer than rounding: either is accepted there, and nothing else.
S lines of logits, V vocabulary, R rows of parameters.
"""

import torch
from torch import Tensor

from .checks import Kernel
from .noise import noise_words, split_seed
from .sample import SamplingRows

# Roundings of float32 sums, in probability and in the logarithms of it.
SLACK = 1e-5

TEMPERATURES, TOP_KS = (0.0, 0.3, 1.0, 2.5), (0, 0, 0, 1, 5, 50, 900, 10**6)
TOP_PS, MIN_PS = (1.0, 1.0, 0.9, 0.5, 1e-6, 0.9999), (0.0, 0.0, 0.05, 0.6, 1.0)


def check_sample(
    sample: Kernel, num_draws: int, vocab_size: int, dtype: torch.dtype, device: str, twin: Kernel | None = None
) -> None:
    """Check draws of mixed parameters from logits with ties and -inf, and that none depends on the others.

    With a `twin` its tokens must be the same without exception.
    """
    logits_SV = random_logits(num_draws, vocab_size, dtype).to(device)
    params = mixed_parameters(num_draws + 3, device)
    rows_S = torch.randperm(num_draws + 3, device=device)[:num_draws].int()
    positions_S = torch.randint(0, 5000, (num_draws,), device=device, dtype=torch.int32)
    before, drawn_R = logits_SV.clone(), torch.full((num_draws + 3,), -7, dtype=torch.int32, device=device)
    tokens_S = sample(logits_SV, rows_S, positions_S, params, drawn_R=drawn_R)
    assert torch.equal(logits_SV, before), "the logits have changed"
    assert tokens_S.dtype == torch.int64
    words_SV = noise_words(params.seed_R2[rows_S], positions_S, torch.arange(vocab_size, device=device))
    for line in range(num_draws):
        temperature, top_k, top_p, min_p = _of_row(params, int(rows_S[line]))
        accepted_V = accepted(logits_SV[line], words_SV[line], temperature, top_k, top_p, min_p)
        assert accepted_V[tokens_S[line]], (
            f"token {int(tokens_S[line])} at {temperature=}, {top_k=}, {top_p=}, {min_p=}"
        )
    assert torch.equal(drawn_R[rows_S].long(), tokens_S), "rows were given others' tokens"
    assert int((drawn_R == -7).sum()) == 3, "a row was given a token that has no line"
    if twin is not None:
        assert torch.equal(tokens_S, twin(logits_SV, rows_S, positions_S, params)), "the twin's tokens differ"
    _check_allowed(sample, logits_SV, rows_S, positions_S, params)
    some = torch.arange(num_draws - 1, -1, -3, device=device)
    few = torch.full((len(some),), -7, device=device)
    sample(logits_SV[some], rows_S[some], positions_S[some], params, out_S=few)
    assert torch.equal(few, tokens_S[some]), "draws depend on what is drawn beside them"


def _check_allowed(
    sample: Kernel, logits_LV: Tensor, rows_S: Tensor, positions_S: Tensor, params: SamplingRows
) -> None:
    """Check that draws of some lines, with some tokens allowed, are those from lines with -inf for all others.

    The last word is left out, so that tokens at the end of the vocabulary have no bits.
    """
    vocab_size, device = logits_LV.shape[1], logits_LV.device
    lines_S = torch.arange(len(rows_S), dtype=torch.int32, device=device).flip(0)[::2].contiguous()
    rows_S, positions_S = rows_S[: len(lines_S)].contiguous(), positions_S[: len(lines_S)].contiguous()
    allowed_SV = torch.rand(len(lines_S), vocab_size, device=device) < 0.3
    allowed_SV[::3] = torch.arange(vocab_size, device=device) == vocab_size // 2
    num_words = max(1, -(-vocab_size // 32) - 1)
    allowed_SV[:, 32 * num_words :] = False
    allowed_SV[:, min(vocab_size, 32 * num_words) // 2] = True
    logits_LV = logits_LV.clone()
    logits_LV[:, min(vocab_size, 32 * num_words) // 2] = -1.5
    masked_SV = logits_LV[lines_S].masked_fill(~allowed_SV, float("-inf"))
    bits = (
        torch.nn.functional.pad(allowed_SV, (0, 32 * num_words))[:, : 32 * num_words]
        .long()
        .view(len(lines_S), num_words, 32)
    )
    words_SW = (bits << torch.arange(32, device=device)).sum(-1)
    allowed_SW = torch.where(words_SW >= 2**31, words_SW - 2**32, words_SW).int()
    tokens_S = sample(logits_LV, rows_S, positions_S, params, lines_S=lines_S, allowed_SW=allowed_SW)
    expected_S = sample(masked_SV, rows_S, positions_S, params)
    assert torch.equal(tokens_S, expected_S), "draws of what is allowed are not those from masked logits"
    assert bool(allowed_SV.gather(1, tokens_S.unsqueeze(1)).all()), "a token was drawn that is not allowed"


def check_frequencies(sample: Kernel, num_draws: int, device: str) -> None:
    """Check how often each of 30 tokens is drawn, with filters that keep the likeliest few and without.

    The sum of squares, χ², of n tokens that can be drawn has the mean n - 1 and the variance 2 (n - 1); it may be six
    standard deviations above, which one in some 100,000 fair sets of draws is.
    """
    generator = torch.Generator().manual_seed(4)
    logits_V = 1.5 * torch.randn(30, generator=generator)
    for top_k, top_p, num_kept in ((0, 1.0, 30), (12, 1.0, 12), (0, 0.8, None)):
        params = SamplingRows(
            temperature_R=torch.full((num_draws,), 1.3, device=device),
            top_p_R=torch.full((num_draws,), top_p, device=device),
            min_p_R=torch.zeros(num_draws, device=device),
            top_k_R=torch.full((num_draws,), top_k, dtype=torch.int32, device=device),
            seed_R2=_seeds(num_draws, device),
        )
        rows_S = torch.arange(num_draws, device=device)
        logits_SV = logits_V.to(device).expand(num_draws, -1)
        tokens_S = sample(logits_SV, rows_S, torch.full_like(rows_S, 17), params)
        probs_V = (logits_V.double() / 1.3).softmax(-1)
        order = probs_V.argsort(descending=True)
        if num_kept is None:
            num_kept = int((probs_V[order].cumsum(-1) < top_p).sum()) + 1
        expected = probs_V[order[:num_kept]] / probs_V[order[:num_kept]].sum() * num_draws
        counts = torch.bincount(tokens_S.cpu(), minlength=30)[order]
        assert int(counts[num_kept:].sum()) == 0, "a token was drawn that the filters drop"
        squares = float(((counts[:num_kept] - expected) ** 2 / expected).sum())
        freedom = num_kept - 1
        assert squares <= freedom + 6 * (2 * freedom) ** 0.5, f"χ² of {squares:.1f} with {freedom} degrees of freedom"


def check_noise_words(words: Kernel, device: str) -> None:
    """Check that all words are bit for bit those of `noise.py`."""
    seed_S2 = _seeds(12, device)
    position_S = torch.tensor([0, 1, 2, 17, 4095, 2**20, 2**31 - 1, 5, 5, 5, 6, 7], device=device)
    token_ids_K = torch.cat([torch.arange(1500), torch.arange(262144 - 500, 262144)]).to(device)
    expected = noise_words(seed_S2, position_S, token_ids_K)
    assert torch.equal(words(seed_S2, position_S, token_ids_K), expected), "the words are others"


def accepted(logits_V: Tensor, words_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens a draw may return: one, but for those that rounding alone sets apart."""
    logits_V = logits_V.double()
    if temperature == 0:
        return torch.arange(len(logits_V), device=logits_V.device) == logits_V.argmax()
    scaled_V = logits_V / temperature
    v = ((words_V >> 1) & 0x7FFFFFFF).float() * 2.0**-31 + 2.0**-32
    score_V = scaled_V - torch.log(-torch.log1p(-v.clamp(max=1 - 2.0**-24).double()))
    certain_V, possible_V = (_kept(scaled_V, top_k, top_p, min_p, slack) for slack in (-SLACK, SLACK))
    reach = SLACK + 1e-6 * scaled_V[certain_V].abs().max()
    return possible_V & (score_V >= score_V[certain_V].max() - reach)


def _kept(scaled_V: Tensor, top_k: int, top_p: float, min_p: float, slack: float) -> Tensor:
    """What the filters keep if each is loosened by the slack, by the textbook: by one sort."""
    ordered = scaled_V.sort(descending=True).values
    kept_V = scaled_V == ordered[0]
    inside_V = torch.ones_like(kept_V)
    if top_k:
        inside_V = scaled_V >= ordered[min(top_k, len(ordered)) - 1]
    probs = (ordered - ordered[0]).exp() * (ordered >= scaled_V[inside_V].min())
    above = torch.cat([probs.new_zeros(1), (probs / probs.sum()).cumsum(-1)])
    above_V = above[torch.searchsorted(-ordered, -scaled_V)]
    if top_p < 1:
        inside_V &= above_V < top_p + slack
    if min_p > 0:
        inside_V &= scaled_V - ordered[0] >= torch.tensor(min_p, dtype=torch.float64).log() - slack
    return kept_V | inside_V


def random_logits(num_lines: int, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Random; some of few different values, some with -inf; a single finite one; zeros of either sign."""
    logits_SV = 3 * torch.randn(num_lines, vocab_size)
    logits_SV[1::4] = logits_SV[1::4].round()
    logits_SV[2::4] = logits_SV[2::4].masked_fill(torch.rand(logits_SV[2::4].shape) < 0.5, float("-inf"))
    logits_SV[:, vocab_size // 2] = 1.0
    logits_SV[0] = 0.0
    logits_SV[0, ::3] = -0.0
    logits_SV[2] = float("-inf")
    logits_SV[2, vocab_size // 3] = -2.0
    return logits_SV.to(dtype)


def mixed_parameters(num_rows: int, device: str) -> SamplingRows:
    def mixed(values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype)[torch.randint(0, len(values), (num_rows,))].to(device)

    return SamplingRows(
        temperature_R=mixed(TEMPERATURES, torch.float32),
        top_p_R=mixed(TOP_PS, torch.float32),
        min_p_R=mixed(MIN_PS, torch.float32),
        top_k_R=mixed(TOP_KS, torch.int32),
        seed_R2=_seeds(num_rows, device),
    )


def _seeds(num_rows: int, device: str) -> Tensor:
    """Small ones, and ones that need all 64 bits."""
    seeds = [seed * (1 if seed % 2 else 0x9E3779B97F4A7C15) for seed in range(num_rows)]
    return torch.tensor([split_seed(seed) for seed in seeds], dtype=torch.int32, device=device)


def _of_row(params: SamplingRows, row: int) -> tuple[float, int, float, float]:
    return (
        float(params.temperature_R[row]),
        int(params.top_k_R[row]),
        float(params.top_p_R[row]),
        float(params.min_p_R[row]),
    )
