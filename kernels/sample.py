"""Drawing tokens from logits, each line with the parameters of its row, without a sort.

Knows nothing of requests; the noise of a draw is a hash of its seed and position (`noise.py`), so that a draw depends
on nothing else in the batch. S draws, L lines of logits, V vocabulary, R rows of parameters, W words of 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .penalties import PenaltyRows
from .reference import sample as reference


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRows:
    """Sampling parameters by row, contiguous on the logits' device."""

    temperature_R: Tensor  # float32; 0 takes the likeliest token; below 0 none is drawn, which costs nothing
    top_p_R: Tensor  # float32; 1 keeps all
    min_p_R: Tensor  # float32; 0 keeps all
    top_k_R: Tensor  # int32; 0 keeps all
    seed_R2: Tensor  # int32, the low and the high word


def sample(
    logits_LV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    params: SamplingRows,
    *,
    lines_S: Tensor | None = None,
    allowed_SW: Tensor | None = None,
    penalties: PenaltyRows | None = None,
    out_S: Tensor | None = None,
    drawn_R: Tensor | None = None,
) -> Tensor:
    """Return tokens_S (int64, in `out_S` if given): a line of the logits drawn from for rows_S[s] at positions_S[s].

    The line is lines_S[s] (int32), s if that is not given. With allowed_SW (int32, bit t % 32 of word
    t // 32 is token t's) tokens whose bit is 0, or that have none, count as if their logits were -inf.
    drawn_R (int32), if given, also gets each token at its row; of a row that stands twice, either. With `penalties`
    logits are float32, less what the row's ask, and the token is noted there; no row may stand twice then.

    At temperature 0 the token of the largest logit, the lowest id among equals. Otherwise logits are divided by the
    temperature; top_k keeps the largest; top_p keeps of what is left each token with less than that share of the
    probability above it; min_p keeps tokens with at least that share of the likeliest one's probability. Tokens with
    equal logits pass or fail together, the likeliest always passes, and -inf is never drawn while a line holds a
    finite logit; of a line that holds none any token is drawn, but one of the vocabulary. Of the kept ones the
    largest sum of logit and Gumbel noise is drawn (https://arxiv.org/abs/1611.00712). Below temperature 0 the token is
    0, whatever the logits, and it is not noted.

    Logits are bfloat16, float16 or float32, with their last dimension contiguous, and remain as they are. On a GPU
    nothing is read back to the host, so the launch can be captured in a CUDA graph.
    """
    if logits_LV.is_cuda:
        from . import triton_sample

        draw: Callable[..., Tensor] = triton_sample.sample
    else:
        draw = reference.sample
    return draw(
        logits_LV,
        rows_S,
        positions_S,
        params,
        lines_S=lines_S,
        allowed_SW=allowed_SW,
        penalties=penalties,
        out_S=out_S,
        drawn_R=drawn_R,
    )
