"""Embeddings: which hidden states become one vector for a whole prompt, and how.

What is pooled is the model's last hidden state, after its final norm: that of the last token, or the mean of all, as
the folder says in the way of sentence-transformers. A mean is summed up on the device by row, over as many steps as the
prompt takes, so nothing of it may come from the prefix cache. Knows nothing of how hidden states come about.

T tokens of one step, D of its rows draw, n of those are pooled, E hidden size, R rows of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .loading import read_json
from .pages import IntArray
from .plan import Plan
from .request import Embedding
from .sequence import Sequence
from .transfer import upload

Kind = Literal["last", "mean"]
Asked = Literal["auto", "last", "mean", "none"]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How a model's embeddings are made."""

    kind: Kind
    is_normalised: bool = True

    def embedding(self, pooled_E: FloatArray, num_tokens: int, asked: Embedding) -> bytes:
        """A row's pooled state as the vector that was asked for: float32, little-endian."""
        vector_E = pooled_E / num_tokens if self.kind == "mean" else pooled_E
        vector_E = vector_E[: asked.dimensions]
        if self.is_normalised:
            vector_E = vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)
        return vector_E.astype("<f4").tobytes()


def find_pooling(folder: Path, asked: Asked) -> Pooling | None:
    """What was asked for, or what the folder says; None where the model is to give none, or not in a way built here.

    A folder that says nothing is a language model's: its last token has seen all others.
    """
    is_normalised = _is_normalised(folder)
    if asked == "none":
        return None
    if asked != "auto":
        return Pooling(kind=asked, is_normalised=is_normalised)
    modes = _modes(folder)
    kinds: dict[frozenset[str], Kind] = {
        frozenset(): "last",
        frozenset({"lasttoken"}): "last",
        frozenset({"mean_tokens"}): "mean",
    }
    kind = kinds.get(modes)
    return None if kind is None else Pooling(kind=kind, is_normalised=is_normalised)


def _modes(folder: Path) -> frozenset[str]:
    file = folder / "1_Pooling" / "config.json"
    fields: dict[str, Any] = read_json(file) if file.exists() else {}
    prefix = "pooling_mode_"
    return frozenset(name.removeprefix(prefix) for name, value in fields.items() if name.startswith(prefix) and value)


def _is_normalised(folder: Path) -> bool:
    """Whether a model that lists its modules ends in a normalisation; without a list it does."""
    file = folder / "modules.json"
    return not file.exists() or "sentence_transformers.models.Normalize" in file.read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Sums or last states of rows whose prompt is complete, still on the device."""

    indices: IntArray  # [n] into the drawing rows
    vectors_nE: Tensor

    def read(self, vectors_nE: FloatArray) -> dict[int, FloatArray]:
        """By index into the drawing rows; `vectors_nE` is the tensor, once it is here."""
        return dict(zip(self.indices.tolist(), vectors_nE, strict=True))


class Pooler:
    """Which rows are to be pooled, and what a mean has come to. `open` when sequences get rows, `pool` after a step."""

    def __init__(self, num_rows: int, pooling: Pooling | None, device: torch.device) -> None:
        self._is_mean = pooling is not None and pooling.kind == "mean"
        self._device = device
        self._embeds_R = np.zeros(num_rows, np.bool_)
        self._sums_RE: Tensor | None = None

    def open(self, sequences: list[Sequence]) -> None:
        """These sequences are new in their rows, with nothing computed that counts for a mean."""
        for sequence in sequences:
            self._embeds_R[sequence.row] = sequence.embeds
        rows = [sequence.row for sequence in sequences if sequence.embeds]
        if rows and self._sums_RE is not None:
            self._sums_RE[upload(np.array(rows, np.int64), self._device)] = 0

    def asks(self, rows_S: IntArray) -> bool:
        """Whether any of a step's rows is to be pooled."""
        return bool(self._embeds_R[rows_S].any())

    @property
    def needs_all(self) -> bool:
        """Whether the states of all tokens are wanted, not only of each row's last."""
        return self._is_mean

    def pool(self, plan: Plan, hidden: Tensor) -> Pooled | None:
        """Take in a step's hidden states, [T, E] if all are needed and else [S, E]."""
        if self._is_mean:
            self._add(plan, hidden)
        lines_D = np.flatnonzero(plan.draws)
        rows_D = plan.rows[lines_D]
        indices = np.flatnonzero(self._embeds_R[rows_D])
        if not len(indices):
            return None
        source, lines_n = (self._sums_RE, rows_D[indices]) if self._is_mean else (hidden, lines_D[indices])
        assert source is not None
        return Pooled(indices=indices, vectors_nE=source[upload(lines_n, self._device)].float())

    def _add(self, plan: Plan, hidden_TE: Tensor) -> None:
        if self._sums_RE is None:
            self._sums_RE = hidden_TE.new_zeros(len(self._embeds_R), hidden_TE.shape[1], dtype=torch.float32)
        # In float32, because a mean of thousands would lose what 16 bits cannot add.
        places_T = np.flatnonzero(np.repeat(self._embeds_R[plan.rows], plan.lengths))
        rows_T = np.repeat(plan.rows, plan.lengths)[places_T]
        states_TE = hidden_TE[upload(places_T, self._device)].float()
        self._sums_RE.index_add_(0, upload(rows_T, self._device), states_TE)
