"""Finding a step's prefills in plain torch, as `find_prefills` of `kernels/paged_attention.py` says. Legend there."""

import torch
from torch import Tensor


def find_prefills(query_starts_S1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows, their starts and their count."""
    lengths_S = query_starts_S1.diff()
    rows = torch.nonzero(lengths_S > 1)[:, 0]
    rows_S, starts_S1 = torch.zeros_like(lengths_S), torch.zeros_like(query_starts_S1)
    rows_S[: len(rows)] = rows.to(rows_S.dtype)
    starts_S1[1 : len(rows) + 1] = lengths_S[rows].cumsum(0)
    return rows_S, starts_S1, rows_S.new_tensor([len(rows)])
