"""Checks of drawing with penalties against their plain formula, on any device, with any implementation.

A companion of `sampling_checks.py`. A check raises AssertionError and otherwise returns nothing. S draws, V vocabulary,
R rows of parameters.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checks import Kernel
from .penalties import PenaltyRows, marks_of
from .sampling_checks import mixed_parameters, random_logits

# Presence, frequency and repetition; among them what changes nothing.
STRENGTHS = (
    (0.0, 0.0, 1.0),
    (0.0, 0.0, 1.1),
    (0.0, 0.0, 0.7),
    (1.5, 0.0, 1.0),
    (0.0, 0.3, 1.0),
    (-0.4, -1.7, 1.3),
    (2.0, 2.0, 10.0),
)


@dataclass(frozen=True, slots=True)
class History:
    """What a row's sequence holds."""

    prompt: list[int]
    generated: list[int]

    def marks(self, vocab_size: int) -> Tensor:
        prompt, generated = (np.array(tokens, np.int32) for tokens in (self.prompt, self.generated))
        return torch.from_numpy(marks_of(prompt, generated, vocab_size))

    def counts(self, vocab_size: int, dtype: torch.dtype) -> Tensor:
        generated = torch.tensor(self.generated, dtype=torch.int64)
        return torch.bincount(generated, minlength=vocab_size).to(dtype)


def check_penalties(
    sample: Kernel, num_draws: int, vocab_size: int, dtype: torch.dtype, device: str, counts: torch.dtype = torch.int16
) -> None:
    """Check that draws are those from logits that the formula has changed, draw after draw, and what is noted of them.

    Every other line is drawn from, and each row's temperature, filters, strengths and history are its own. Some rows
    are not to be drawn, and half of the others may draw some tokens only.
    """
    num_rows = num_draws + 3
    logits_LV = random_logits(2 * num_draws, vocab_size, dtype).to(device)
    params = mixed_parameters(num_rows, device)
    params.temperature_R[::7] = -1
    histories = [_history(row, vocab_size) for row in range(num_rows)]
    penalties = penalty_rows(histories, vocab_size, device, counts)
    order = torch.randperm(num_rows)[:num_draws]
    rows_S = order.to(device, torch.int32)
    lines_S = (2 * torch.arange(num_draws, device=device)).int()
    allowed_SW = torch.full((num_draws, -(-vocab_size // 32)), -1, dtype=torch.int32, device=device)
    allowed_SW[::2] = 0x2D5A5A5A
    for position, allowed in ((40, None), (41, allowed_SW), (42, None)):
        given_LV = logits_LV.clone()
        positions_S = torch.full((num_draws,), position, dtype=torch.int32, device=device)
        changed_SV = changed(logits_LV[lines_S], [histories[row] for row in order.tolist()], order.tolist())
        expected_S = sample(changed_SV, rows_S, positions_S, params, allowed_SW=allowed)
        tokens_S = sample(
            logits_LV, rows_S, positions_S, params, lines_S=lines_S, allowed_SW=allowed, penalties=penalties
        )
        assert torch.equal(given_LV, logits_LV), "the logits have changed"
        assert torch.equal(tokens_S, expected_S), "draws with penalties are not those from changed logits"
        for row, token in zip(order.tolist(), tokens_S.tolist(), strict=True):
            if row % 7:
                histories[row].generated.append(token)
        _check_noted(penalties, histories, vocab_size)
        logits_LV = logits_LV.roll(2, 0)


def changed(logits_SV: Tensor, histories: list[History], rows: list[int]) -> Tensor:
    """The formula, in float32, token by token; frequency's product is not rounded before it is taken away."""
    result_SV = logits_SV.float().cpu()
    for line, (history, row) in enumerate(zip(histories, rows, strict=True)):
        presence, frequency, repetition = (np.float32(x) for x in strengths_of(row))
        times = Counter(history.generated)
        values = result_SV[line].numpy()
        for token in {*history.prompt, *times}:
            x = values[token]
            x = x / repetition if x > 0 else x * repetition
            x = np.float32(float(x) - float(frequency) * times[token])
            values[token] = x - presence if times[token] else x
    return result_SV.to(logits_SV.device)


def strengths_of(row: int) -> tuple[float, float, float]:
    return STRENGTHS[row % len(STRENGTHS)]


def penalty_rows(histories: list[History], vocab_size: int, device: str, counts: torch.dtype) -> PenaltyRows:
    """Rows with each its own strengths and history; lines of counts in no order, only for those that need one."""
    counted = [row for row in range(len(histories)) if strengths_of(row)[1] != 0][::-1]
    slots_R = torch.full((len(histories),), -1, dtype=torch.int32)
    slots_R[counted] = torch.arange(len(counted), dtype=torch.int32)
    counts_CV = [torch.empty(0, vocab_size, dtype=counts)]
    counts_CV += [histories[row].counts(vocab_size, counts).unsqueeze(0) for row in counted]
    return PenaltyRows(
        strengths_R3=torch.tensor([strengths_of(row) for row in range(len(histories))], device=device),
        marks_RM=torch.stack([history.marks(vocab_size) for history in histories]).to(device),
        slots_R=slots_R.to(device),
        counts_CV=torch.cat(counts_CV).to(device),
    )


def _check_noted(penalties: PenaltyRows, histories: list[History], vocab_size: int) -> None:
    """Each row's marks and counts are those of all that it has drawn."""
    marks_RM = torch.stack([history.marks(vocab_size) for history in histories])
    assert torch.equal(penalties.marks_RM.cpu(), marks_RM), "marks are not those of what was drawn"
    for row, slot in enumerate(penalties.slots_R.tolist()):
        if slot >= 0:
            counts_V = penalties.counts_CV[slot].cpu()
            assert torch.equal(counts_V, histories[row].counts(vocab_size, counts_V.dtype)), "counts are wrong"


def _history(row: int, vocab_size: int) -> History:
    """Nothing; a prompt alone; the same token very often; the vocabulary's last; some of all."""
    some = [int(token) for token in torch.randint(0, vocab_size, (row * 5 % 60,))]
    kinds = (
        History([], []),
        History(some, []),
        History(some, [vocab_size // 2] * 3000),
        History([vocab_size - 1], [vocab_size - 1, *some]),
        History(list(range(0, vocab_size, max(2, vocab_size // 500))), some + some[::2]),
    )
    return kinds[row % len(kinds)]
