"""The tables of rotary position embedding: frequencies as config.json describes them, cosines and sines by position.

Knows nothing of queries and keys. M positions, R rotated pairs of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ModelUnsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's: long waves are slowed by `factor`, short ones kept, those between interpolated.

    Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py (apply_scaling).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Base and scaling; `linear_factor` divides every position."""

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rope:
        """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before). Others are refused."""
        fields = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = float(fields.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
        kind = fields.pop("rope_type", None) or fields.pop("type", None) or "default"
        fields.pop("type", None)
        if float(fields.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1) != 1:
            raise ModelUnsupported("config.json: a partial_rotary_factor other than 1 is not supported")
        try:
            if kind == "default":
                return cls(theta=theta)
            if kind == "linear":
                return cls(theta=theta, linear_factor=float(fields["factor"]))
            if kind == "llama3":
                original = int(fields["original_max_position_embeddings"])
                factors = {name: float(fields[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
                scaling = Llama3Scaling(**factors, original_max_position_embeddings=original)
                return cls(theta=theta, llama3=scaling)
        except KeyError as e:
            raise ModelUnsupported(f"config.json: rope scaling of type {kind!r} lacks {e.args[0]!r}") from e
        raise ModelUnsupported(
            f"config.json: rope scaling of type {kind!r} is not supported (default, linear and llama3 are)"
        )

    def frequencies(self, head_size: int) -> Tensor:
        """Radians a position for each of the head's pairs, in float32."""
        exponents_R = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
        frequencies_R = 1.0 / (self.theta**exponents_R)
        if self.llama3 is not None:
            return _slow_long_waves(frequencies_R, self.llama3)
        return frequencies_R / self.linear_factor

    def tables(self, num_positions: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos_MR and sin_MR, float32."""
        positions_M = torch.arange(num_positions, dtype=torch.float32)
        angles_MR = torch.outer(positions_M, self.frequencies(head_size))
        return angles_MR.cos().to(device), angles_MR.sin().to(device)


def _slow_long_waves(frequencies_R: Tensor, scaling: Llama3Scaling) -> Tensor:
    waves_R = 2 * math.pi / frequencies_R
    turns_R = scaling.original_max_position_embeddings / waves_R  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return frequencies_R * (kept_R + (1 - kept_R) / scaling.factor)
