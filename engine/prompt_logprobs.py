"""Log-probabilities of prompts' own tokens, for the sequences that ask for them.

They come from the hidden states of a prompt's tokens, which a step has for those that it computes; so what such a
sequence has not scored yet is not taken from the prefix cache. The head is applied to few lines at once, so that memory
stays bounded. Knows nothing of draws or of the order of work.

P prompt tokens of a step whose successors are scored, K most alternatives, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .pages import IntArray
from .plan import Plan
from .request import PromptLogprob
from .rows import Rows

# What `memory.py` measures a step with: logits in float32, in a few copies.
LINES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What a step is to score: tokens by their place in it, and those that follow them in their prompts."""

    lines_P: IntArray
    targets_P: IntArray
    owners_P: IntArray  # indices of the plan's rows
    positions_P: IntArray  # of the tokens that follow
    num_top: int


class PromptLogprobs:
    """`wanted` of a plan; `take` what came of it."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def wanted(self, plan: Plan) -> Scoring | None:
        """None if no row asks, or none has prompt tokens in this step."""
        rows = self._rows
        asks_S = rows.scores_prompt_R[plan.rows] & (plan.starts < rows.num_prompt_R[plan.rows] - 1)
        if not asks_S.any():
            return None
        firsts_S = np.cumsum(plan.lengths) - plan.lengths
        parts = [self._part(plan, owner, int(firsts_S[owner])) for owner in np.flatnonzero(asks_S).tolist()]
        lines_P, targets_P, owners_P, positions_P = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        counts = [rows.sequence(row).request.params.prompt_logprobs or 0 for row in plan.rows[asks_S].tolist()]
        return Scoring(
            lines_P=lines_P, targets_P=targets_P, owners_P=owners_P, positions_P=positions_P, num_top=max(counts)
        )

    def take(self, plan: Plan, scoring: Scoring, values: list[npt.NDArray[Any]]) -> None:
        """Give the scores to the sequences that still have their rows; `values` are the tensors of `score`."""
        live_S = self._rows.tenancy_R[plan.rows] == plan.tenancies
        listed = (scoring.owners_P, scoring.positions_P, scoring.targets_P, *values)
        for owner, position, token, logprob, rank, tops, ids in zip(*(x.tolist() for x in listed), strict=True):
            if not live_S[owner]:
                continue
            sequence = self._rows.sequence(int(plan.rows[owner]))
            if position == len(sequence.prompt_logprobs) + 1:  # Others were scored before a preemption.
                count = sequence.request.params.prompt_logprobs
                top = tuple(zip(ids[:count], tops[:count], strict=True))
                sequence.prompt_logprobs.append(PromptLogprob(token_id=token, logprob=logprob, rank=rank, top=top))

    def _part(self, plan: Plan, owner: int, first: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """The lines, targets, owners and positions of one of the plan's rows, whose tokens begin at `first`."""
        row, start = int(plan.rows[owner]), int(plan.starts[owner])
        end = min(start + int(plan.lengths[owner]), int(self._rows.num_prompt_R[row]) - 1)
        positions = np.arange(start + 1, end + 1)
        targets = self._rows.token_ids_RL[row, positions].astype(np.int64)
        return first + positions - start - 1, targets, np.full(len(positions), owner), positions


def score(logits: Callable[[Tensor], Tensor], hidden_PE: Tensor, targets_P: Tensor, num_top: int) -> list[Tensor]:
    """The targets' log-probabilities and ranks [P]; the likeliest tokens' log-probabilities and ids [P, K]."""
    parts = []
    for some_pE, targets_p in zip(*(torch.split(x, LINES_AT_ONCE) for x in (hidden_PE, targets_P)), strict=True):
        logprobs_pV = logits(some_pE).float().log_softmax(-1)
        chosen_p1 = logprobs_pV.gather(1, targets_p.long().unsqueeze(1))
        ranks_p = (logprobs_pV > chosen_p1).sum(-1) + 1
        tops_pK, ids_pK = logprobs_pV.topk(min(num_top, logprobs_pV.shape[1]))
        parts.append((chosen_p1[:, 0], ranks_p, tops_pK, ids_pK))
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
