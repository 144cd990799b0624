"""The Llama architecture: Llama 1 to 3.x, SmolLM2, Yi; Mistral with its sliding window; Qwen2, 2.5 and 3.

Knows nothing of requests or of how its weights are read. T tokens of one step, S rows of it, E hidden
size, H query heads, D head size, M positions and R rotated pairs of the rope tables, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.rms_norm import rms_norm
from ..errors import ModelUnsupported
from ..linear import GatedLinear, Linear, Making, Slot, packed, product
from ..rope import Rope
from .base import KVPages, StepTensors, attend


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an architecture's name says of a model, beside its config.json; the defaults are Llama's."""

    # `sliding_window` holds for all layers (transformers' default is 4096, null is none).
    windowed: bool = False
    # It holds if `use_sliding_window` does, for the layers that `layer_types` or `max_window_layers` tells.
    partly_windowed: bool = False
    # Biases of the q, k and v projections alone; otherwise `attention_bias` speaks for these and the output's.
    qkv_bias: bool = False
    # Each query and key head is normed before it is rotated.
    head_norms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What config.json says, checked; names are its own where it has one."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    windows: tuple[int | None, ...]  # of each layer
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool
    tie_word_embeddings: bool
    rope: Rope

    @classmethod
    def from_json(cls, config: Mapping[str, Any], *, traits: Traits) -> LlamaConfig:
        """Raises ModelUnsupported for a field that asks for what is not built, or that is missing."""
        _refuse_unsupported(config)
        attention_bias = bool(config.get("attention_bias", False)) and not traits.qkv_bias
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
                windows=_windows(config, traits),
                qkv_bias=attention_bias or traits.qkv_bias,
                output_bias=attention_bias,
                mlp_bias=bool(config.get("mlp_bias", False)),
                head_norms=traits.head_norms,
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
        self.cos_MR, self.sin_MR = config.rope.tables(max_model_len, config.head_dim, make.device)

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
        """Write the step's keys and values; return the final hidden states hidden_SE of each row's last token."""
        residual_TE = torch.nn.functional.embedding(token_ids_T, self.embedding_VE)
        x_TE = rms_norm(residual_TE, self.layers[0].input_norm_E, self.config.rms_norm_eps)
        for i, layer in enumerate(self.layers):
            if i and step.before_layer is not None:
                step.before_layer(i)
            attended = layer.attend(x_TE, step, kv, i, self.cos_MR, self.sin_MR)
            if i + 1 == len(self.layers):
                # Nothing reads the other tokens' last hidden states.
                attended, residual_TE = attended[step.last], residual_TE[step.last]
                next_norm_E = self.norm_E
            else:
                next_norm_E = self.layers[i + 1].input_norm_E
            x_TE, residual_TE = layer.feed_forward(attended, residual_TE, next_norm_E)
        return x_TE

    def logits(self, hidden_SE: Tensor, out: Tensor | None = None) -> Tensor:
        """logits_SV in the model's dtype, in `out` if given."""
        if out is not None and not self._head_is_packed:
            return torch.mm(hidden_SE, self.head_VE.T, out=out)
        logits_SV = product(hidden_SE, self.head_VE, None, is_packed=self._head_is_packed)
        return logits_SV if out is None else out.copy_(logits_SV)

    def new_logits(self, num_rows: int) -> Tensor:
        """Memory for the logits of so many rows."""
        return self.norm_E.new_empty(num_rows, self.config.vocab_size)


class _Layer:
    def __init__(self, index: int, config: LlamaConfig, make: Making) -> None:
        self._prefix = prefix = f"model.layers.{index}."
        self._eps, self._window = config.rms_norm_eps, config.windows[index]
        self._num_heads = config.num_attention_heads // make.shard.size
        hidden_size, mlp_size = config.hidden_size, config.intermediate_size
        q_size, kv_size = (
            num_heads * config.head_dim for num_heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv_parts = {
            attention + "q_proj": q_size,
            attention + "k_proj": kv_size,
            attention + "v_proj": kv_size,
        }
        self.qkv = Linear(qkv_parts, hidden_size, bias=config.qkv_bias, split=0, make=make)
        self.output = Linear({attention + "o_proj": hidden_size}, q_size, bias=config.output_bias, split=1, make=make)
        self.gate_up = GatedLinear(
            mlp + "gate_proj", mlp + "up_proj", mlp_size, hidden_size, bias=config.mlp_bias, make=make
        )
        self.down = Linear({mlp + "down_proj": hidden_size}, mlp_size, bias=config.mlp_bias, split=1, make=make)
        self.q_norm_D = make.empty(config.head_dim) if config.head_norms else None
        self.k_norm_D = make.empty(config.head_dim) if config.head_norms else None
        self.input_norm_E = make.empty(hidden_size)
        self.post_norm_E = make.empty(hidden_size)

    def slots(self) -> Iterator[Slot]:
        yield Slot(name=self._prefix + "input_layernorm.weight", into=self.input_norm_E)
        yield Slot(name=self._prefix + "post_attention_layernorm.weight", into=self.post_norm_E)
        if self.q_norm_D is not None and self.k_norm_D is not None:
            yield Slot(name=self._prefix + "self_attn.q_norm.weight", into=self.q_norm_D)
            yield Slot(name=self._prefix + "self_attn.k_norm.weight", into=self.k_norm_D)
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            yield from linear.slots()

    def pack(self) -> None:
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.pack()

    def attend(
        self, x_TE: Tensor, step: StepTensors, kv: KVPages, index: int, cos_MR: Tensor, sin_MR: Tensor
    ) -> Tensor:
        """What the heads gathered, before the output projection: [T, H · D]."""
        out_THD = attend(
            self.qkv(x_TE),
            step,
            kv,
            index,
            num_heads=self._num_heads,
            cos_MR=cos_MR,
            sin_MR=sin_MR,
            window=self._window,
            q_norm_D=self.q_norm_D,
            k_norm_D=self.k_norm_D,
            eps=self._eps,
        )
        return out_THD.flatten(1)

    def feed_forward(self, attended: Tensor, residual_TE: Tensor, next_norm_E: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the layer; returns (the next layer's normalised input, the residual stream)."""
        residual_TE = self.output.added_to(residual_TE, attended)
        x_TE = rms_norm(residual_TE, self.post_norm_E, self._eps)
        residual_TE = self.down.added_to(residual_TE, self.gate_up(x_TE))
        return rms_norm(residual_TE, next_norm_E, self._eps), residual_TE


def _windows(config: Mapping[str, Any], traits: Traits) -> tuple[int | None, ...]:
    """How far each layer's attention reaches back; None is to the beginning."""
    num_layers = int(config["num_hidden_layers"])
    asked = traits.windowed or (traits.partly_windowed and config.get("use_sliding_window", False))
    window = config.get("sliding_window", 4096) if asked else None
    if window is None:
        return (None,) * num_layers
    if not isinstance(window, int) or window < 1:
        raise ModelUnsupported(f"config.json: sliding_window {window!r} is not a positive number")
    if traits.windowed:
        return (window,) * num_layers
    first = int(config.get("max_window_layers", 28))
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (num_layers - first)
    if set(kinds) - {"full_attention", "sliding_attention"} or len(kinds) < num_layers:
        raise ModelUnsupported(f"config.json: layer_types {kinds!r} is not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:num_layers])


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise ModelUnsupported("config.json: quantization_config is set, and quantised weights are not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelUnsupported(f"config.json: hidden_act {config['hidden_act']!r} is not supported (silu is)")
