"""Root-mean-square normalisation, alone and with the residual sum before it. T tokens, E elements of a token."""

from torch import Tensor

from .reference import rms_norm as reference


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension, a new tensor in x's dtype."""
    if x_TE.is_cuda:
        from . import triton_rms_norm

        return triton_rms_norm.rms_norm(x_TE, weight_E, eps)
    return reference.rms_norm(x_TE, weight_E, eps)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(sum), sum) with sum = x + residual, both new tensors in x's dtype."""
    if x_TE.is_cuda:
        from . import triton_rms_norm

        return triton_rms_norm.add_rms_norm(x_TE, residual_TE, weight_E, eps)
    return reference.add_rms_norm(x_TE, residual_TE, weight_E, eps)
