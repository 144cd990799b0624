"""Root-mean-square normalisation. T tokens, E elements of a token."""

from torch import Tensor

from .reference import rms_norm as reference


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension, a new tensor in x's dtype."""
    if x_TE.is_cuda:
        from . import triton_rms_norm

        return triton_rms_norm.rms_norm(x_TE, weight_E, eps)
    return reference.rms_norm(x_TE, weight_E, eps)
