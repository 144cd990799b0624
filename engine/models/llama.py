"""The Llama architecture: Llama 1 to 3.x, SmolLM2, Yi, and Mistral with its sliding window.

Knows nothing of requests or of how its weights are read. T tokens of one step, D of them draw a next token, E hidden
size, F feed-forward size, H query heads, G kv heads, S head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.rms_norm import add_rms_norm, rms_norm
from ...kernels.rotary import rotary
from ...kernels.silu_mul import silu_mul
from ..errors import ModelUnsupported
from ..linear import Linear, Making, Slot, packed, product
from ..rope import Rope
from .base import KVPages, StepTensors, attend


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What config.json says, checked; names are its own."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    rope: Rope

    @classmethod
    def from_json(cls, config: Mapping[str, Any], *, windowed: bool) -> LlamaConfig:
        """Raises ModelUnsupported for a field that asks for what is not built, or that is missing.

        `windowed` says whether the architecture has a sliding window; transformers' default is 4096, null is none.
        """
        _refuse_unsupported(config)
        window = config.get("sliding_window", 4096) if windowed else None
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ModelUnsupported(f"config.json: sliding_window {window!r} is not a positive number")
        try:
            num_heads = int(config["num_attention_heads"])
            hidden_size = int(config["hidden_size"])
            built = cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden_size,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=num_heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or num_heads),
                head_dim=int(config.get("head_dim") or hidden_size // num_heads),
                rms_norm_eps=float(config["rms_norm_eps"]),
                max_position_embeddings=int(config["max_position_embeddings"]),
                sliding_window=window,
                attention_bias=bool(config.get("attention_bias", False)),
                mlp_bias=bool(config.get("mlp_bias", False)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                rope=Rope.from_config(config),
            )
        except KeyError as e:
            raise ModelUnsupported(f"config.json lacks {e.args[0]!r}") from e
        if built.num_attention_heads % built.num_key_value_heads:
            raise ModelUnsupported("config.json: num_attention_heads is no multiple of num_key_value_heads")
        return built


class Llama:
    """The model on one device. `slots` says where the checkpoint's tensors go; `finish` follows their loading."""

    # Tensors that some checkpoints hold and nobody needs.
    ignorable_suffixes = ("rotary_emb.inv_freq",)

    def __init__(self, config: LlamaConfig, *, max_model_len: int, make: Making) -> None:
        self.config = config
        self.num_kv_heads = config.num_key_value_heads // make.shard.size
        self.embedding_VE = make.empty(config.vocab_size, config.hidden_size)
        self.layers = [_Layer(i, config, make) for i in range(config.num_hidden_layers)]
        self.norm_E = make.empty(config.hidden_size)
        self.head_VE = self.embedding_VE if config.tie_word_embeddings else torch.empty_like(self.embedding_VE)
        self._head_is_packed = False
        self.cos_MS, self.sin_MS = config.rope.tables(max_model_len, config.head_dim, make.device)

    def slots(self) -> Iterator[Slot]:
        yield Slot(name="model.embed_tokens.weight", into=self.embedding_VE)
        for layer in self.layers:
            yield from layer.slots()
        yield Slot(name="model.norm.weight", into=self.norm_E)
        if not self.config.tie_word_embeddings:
            yield Slot(name="lm_head.weight", into=self.head_VE)

    def is_ignorable(self, name: str) -> bool:
        """Whether a tensor of the checkpoint that has no slot may be left out."""
        tied_head = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or name.endswith(self.ignorable_suffixes)

    def finish(self) -> None:
        """Once loaded: lay the weights out for speed."""
        for layer in self.layers:
            layer.pack()
        # A tied head is packed beside the embedding, from which single rows are still read.
        self.head_VE, self._head_is_packed = packed(self.head_VE)

    def forward(self, token_ids_T: Tensor, step: StepTensors, kv: KVPages) -> Tensor:
        """Write the step's keys and values; return the final hidden states hidden_DE of the tokens that draw."""
        residual_TE = self.embedding_VE[token_ids_T]
        x_TE = rms_norm(residual_TE, self.layers[0].input_norm_E, self.config.rms_norm_eps)
        for i, layer in enumerate(self.layers):
            attended = layer.attend(x_TE, step, kv, i, self.cos_MS, self.sin_MS)
            if i + 1 == len(self.layers):
                # Nothing reads the other tokens' last hidden states.
                attended, residual_TE = attended[step.drawing], residual_TE[step.drawing]
                next_norm_E = self.norm_E
            else:
                next_norm_E = self.layers[i + 1].input_norm_E
            x_TE, residual_TE = layer.feed_forward(attended, residual_TE, next_norm_E)
        return x_TE

    def logits(self, hidden_DE: Tensor) -> Tensor:
        """logits_DV in the model's dtype."""
        return product(hidden_DE, self.head_VE, None, is_packed=self._head_is_packed)


class _Layer:
    def __init__(self, index: int, config: LlamaConfig, make: Making) -> None:
        self._prefix = prefix = f"model.layers.{index}."
        self._eps, self._window, self._head_size = config.rms_norm_eps, config.sliding_window, config.head_dim
        hidden_size, mlp_size = config.hidden_size, config.intermediate_size
        q_size, kv_size = (
            num_heads * config.head_dim for num_heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self._sizes = [size // make.shard.size for size in (q_size, kv_size, kv_size)]
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv_parts = {
            attention + "q_proj": q_size,
            attention + "k_proj": kv_size,
            attention + "v_proj": kv_size,
        }
        gate_up_parts = {mlp + "gate_proj": mlp_size, mlp + "up_proj": mlp_size}
        in_attention, in_mlp = config.attention_bias, config.mlp_bias
        self.qkv = Linear(qkv_parts, hidden_size, bias=in_attention, split=0, make=make)
        self.output = Linear({attention + "o_proj": hidden_size}, q_size, bias=in_attention, split=1, make=make)
        self.gate_up = Linear(gate_up_parts, hidden_size, bias=in_mlp, split=0, make=make)
        self.down = Linear({mlp + "down_proj": hidden_size}, mlp_size, bias=in_mlp, split=1, make=make)
        self.input_norm_E = make.empty(hidden_size)
        self.post_norm_E = make.empty(hidden_size)

    def slots(self) -> Iterator[Slot]:
        yield Slot(name=self._prefix + "input_layernorm.weight", into=self.input_norm_E)
        yield Slot(name=self._prefix + "post_attention_layernorm.weight", into=self.post_norm_E)
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            yield from linear.slots()

    def pack(self) -> None:
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.pack()

    def attend(
        self, x_TE: Tensor, step: StepTensors, kv: KVPages, index: int, cos_MS: Tensor, sin_MS: Tensor
    ) -> Tensor:
        """What the heads gathered, before the output projection: [T, H · S]."""
        parts = torch.split(self.qkv(x_TE), self._sizes, dim=-1)
        q, k, v = (part.view(len(part), -1, self._head_size) for part in parts)
        q_THS, k_TGS = rotary(q, k, step.positions, cos_MS, sin_MS)
        return attend(q_THS, k_TGS, v, step, kv, index, self._window).flatten(1)

    def feed_forward(self, attended: Tensor, residual_TE: Tensor, next_norm_E: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the layer; returns (the next layer's normalised input, the residual stream)."""
        x_TE, residual_TE = add_rms_norm(self.output(attended), residual_TE, self.post_norm_E, self._eps)
        mlp_TE = self.down(silu_mul(self.gate_up(x_TE)))
        return add_rms_norm(mlp_TE, residual_TE, next_norm_E, self._eps)


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise ModelUnsupported("config.json: quantization_config is set, and quantised weights are not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelUnsupported(f"config.json: hidden_act {config['hidden_act']!r} is not supported (silu is)")
