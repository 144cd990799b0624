"""Matrix products with weights that stay: where their parts come from in a checkpoint, and how they are laid out.

Knows nothing of models or files. A projection may be fused from several of the checkpoint's (q, k and v; gate and
up), and may hold one tensor-parallel rank's share of each. N outputs, K inputs, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.gated_product import gated_product
from ..kernels.reference.silu_mul import gated
from ..kernels.silu_mul import silu_mul

# Rows of input for which oneDNN chooses its layout. Measured on an EPYC 9004 from 32 to 2048 rows: it serves them all.
PACKED_FOR_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which share of every split weight this process holds."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How weights are made: their dtype, where they lie, and which share of the split ones."""

    dtype: torch.dtype
    device: torch.device
    shard: Shard = Shard()

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of one tensor of the checkpoint: a view into a weight.

    With `split` the view holds the `shard.rank`-th of `shard.size` equal slices of the tensor along that dimension.
    """

    name: str
    into: Tensor
    split: int | None = None
    shard: Shard = Shard()

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the checkpoint."""
        shape = list(self.into.shape)
        if self.split is not None:
            shape[self.split] *= self.shard.size
        return tuple(shape)

    def fill(self, tensor: Tensor) -> None:
        """Copy this process's share of the checkpoint's tensor into its place."""
        if self.split is not None:
            length = self.into.shape[self.split]
            tensor = tensor.narrow(self.split, self.shard.rank * length, length)
        self.into.copy_(tensor)


class Linear:
    """y = x · Wᵀ + b with W made of one or more of the checkpoint's projections, one below the other.

    `split` says what a tensor-parallel rank holds: 0 a share of each projection's outputs ("column parallel"), 1 a
    share of the inputs ("row parallel"; the products of all ranks must be summed, which is not built yet).
    """

    def __init__(
        self,
        parts: dict[str, int],
        num_inputs: int,
        *,
        bias: bool,
        split: int,
        make: Making,
    ) -> None:
        shard = make.shard
        assert shard.size == 1, "summing over tensor-parallel ranks is not built"
        self._parts = {name: num_outputs // (shard.size if split == 0 else 1) for name, num_outputs in parts.items()}
        self._split, self._shard = split, shard
        num_inputs //= shard.size if split == 1 else 1
        num_outputs = sum(self._parts.values())
        self.weight_NK = make.empty(num_outputs, num_inputs)
        self.bias_N = make.empty(num_outputs) if bias else None
        self._packed = False

    def slots(self) -> Iterator[Slot]:
        """Where the checkpoint's tensors go."""
        start = 0
        for name, num_outputs in self._parts.items():
            rows = slice(start, start + num_outputs)
            yield Slot(name=f"{name}.weight", into=self.weight_NK[rows], split=self._split, shard=self._shard)
            if self.bias_N is not None:
                split = 0 if self._split == 0 else None
                yield Slot(name=f"{name}.bias", into=self.bias_N[rows], split=split, shard=self._shard)
            start += num_outputs

    def pack(self) -> None:
        """Once loaded: put the weight into the layout that products with it are fastest in. Frees the old one."""
        self.weight_NK, self._packed = packed(self.weight_NK)

    def __call__(self, x_TK: Tensor) -> Tensor:
        return product(x_TK, self.weight_NK, self.bias_N, is_packed=self._packed)

    def added_to(self, residual_TN: Tensor, x_TK: Tensor) -> Tensor:
        """residual + x · Wᵀ + b, rounded once; on a GPU it takes the residual's place.

        It spares a pass over both: on an H100 140 µs of a Llama-3.1-8B layer with 8192 tokens, some 2% (docs/log.md).
        """
        if self._packed:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            out: Tensor = binary(x_TK, residual_TN, self.weight_NK, self.bias_N, "add")
            return out
        if self.bias_N is not None:
            residual_TN = residual_TN.add_(self.bias_N)
        return residual_TN.addmm_(x_TK, self.weight_NK.T)


class GatedLinear(Linear):
    """silu(x · gateᵀ + b) · (x · upᵀ + c): a projection of two parts, the gate's and the value's.

    Their weights' rows alternate, as `gated_product` wants them; where weights are packed, each part is by itself.
    """

    def __init__(self, gate: str, up: str, num_outputs: int, num_inputs: int, *, bias: bool, make: Making) -> None:
        super().__init__({gate: num_outputs, up: num_outputs}, num_inputs, bias=bias, split=0, make=make)
        self._packed_parts: list[tuple[Tensor, Tensor | None]] = []

    def slots(self) -> Iterator[Slot]:
        for index, name in enumerate(self._parts):
            yield Slot(name=f"{name}.weight", into=self.weight_NK[index::2], split=0, shard=self._shard)
            if self.bias_N is not None:
                yield Slot(name=f"{name}.bias", into=self.bias_N[index::2], split=0, shard=self._shard)

    def pack(self) -> None:
        if not _is_packable(self.weight_NK):
            return
        # The one after the other, so that no more than one of them is there twice.
        halves = [self.weight_NK[index::2].contiguous() for index in range(2)]
        self.weight_NK = self.weight_NK.new_empty(0)
        biases = [None if self.bias_N is None else self.bias_N[index::2].contiguous() for index in range(2)]
        self._packed_parts = [(packed(halves.pop(0))[0], bias) for bias in biases]

    def __call__(self, x_TK: Tensor) -> Tensor:
        if self._packed_parts:
            return gated(*(product(x_TK, *part, is_packed=True) for part in self._packed_parts))
        if self.bias_N is not None:
            return silu_mul(super().__call__(x_TK))
        return gated_product(x_TK, self.weight_NK)


def packed(weight_NK: Tensor) -> tuple[Tensor, bool]:
    """The weight in oneDNN's blocked layout, and True; the weight as it is, and False, where that does not serve.

    On a 2-core EPYC 9004 in float32 products with blocked weights are 1.1 to 1.8 times as fast as `F.linear`.
    """
    if not _is_packable(weight_NK):
        return weight_NK, False
    return torch.ops.mkldnn._reorder_linear_weight(weight_NK, PACKED_FOR_ROWS), True


def product(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, is_packed: bool) -> Tensor:
    """x · weightᵀ + bias, with the weight from `packed`."""
    if not is_packed:
        return torch.nn.functional.linear(x_TK, weight_NK, bias_N)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, weight_NK, bias_N, "none", [], "")
    return out


def _is_packable(weight_NK: Tensor) -> bool:
    serves = weight_NK.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return serves and weight_NK.dtype in _packable_dtypes()


def _packable_dtypes() -> tuple[torch.dtype, ...]:
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32, torch.bfloat16)
    return (torch.float32,)
