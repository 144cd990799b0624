"""Turns a GGUF file of a Llama-architecture model into a Hugging Face folder: bf16 safetensors, config, tokenizer.

Tensors go through one at a time, so that memory holds the largest one and not the model. Two things are undone on
the way: llama.cpp stores q and k rows interleaved for its rotary layout, and it drops the tokenizer's pipeline, of
which only a name (`tokenizer.ggml.pre`) is left. What is not known here is refused; nothing is guessed.

Knows nothing of where the file comes from.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .errors import ModelUnsupported, WeightsError

CONTROL, USER_DEFINED = 3, 4  # token types in tokenizer.ggml.token_type (GGUF specification)

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# How text is cut before the merges, by `tokenizer.ggml.pre`. SmolLM reads numbers digit by digit.
PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """An open GGUF file: tensors by name, and metadata by key."""

    tensors: dict[str, ReaderTensor]
    reader: GGUFReader

    def get(self, key: str) -> Any:
        """The value of a metadata key, or None where the file does not have it."""
        field = self.reader.get_field(key)
        return None if field is None else field.contents()

    def need(self, key: str) -> Any:
        """The value of a metadata key that must be there."""
        value = self.get(key)
        if value is None:
            raise WeightsError(f"the GGUF file lacks {key}")
        return value


def convert_gguf(source: Path, folder: Path) -> None:
    """Write into `folder` (which exists) what `AutoModelForCausalLM` and `AutoTokenizer` load.

    Raises ModelUnsupported for an architecture, a tokenizer or a tensor that has no place in a plain Llama model,
    WeightsError for a file that is not GGUF or lacks what a model needs.
    """
    try:
        reader = GGUFReader(source)
    except ValueError as error:
        raise WeightsError(f"{source} is not a readable GGUF file: {error}") from error
    gguf = Gguf(reader=reader, tensors={tensor.name: tensor for tensor in reader.tensors})
    architecture = gguf.need("general.architecture")
    if architecture != "llama":
        raise ModelUnsupported(f"GGUF architecture {architecture!r}; only 'llama' is converted")
    config = _config(gguf)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(config))
    _tokenizer(gguf).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf, config))
    _write_safetensors(folder / "model.safetensors", _placed(gguf.tensors.values()), config)


def _config(gguf: Gguf) -> dict[str, Any]:
    hidden, heads = gguf.need("llama.embedding_length"), gguf.need("llama.attention.head_count")
    scaling = gguf.get("llama.rope.scaling.type")
    if scaling not in (None, "none"):
        raise ModelUnsupported(f"GGUF with rope scaling {scaling!r}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": gguf.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": gguf.get("tokenizer.ggml.padding_token_id"),
        "head_dim": gguf.get("llama.rope.dimension_count") or hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": gguf.need("llama.feed_forward_length"),
        "max_position_embeddings": gguf.need("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": gguf.need("llama.block_count"),
        "num_key_value_heads": gguf.get("llama.attention.head_count_kv") or heads,
        # Stored as float32: 1e-5 comes back as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{gguf.need('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": gguf.get("llama.rope.freq_base") or 10000.0,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "vocab_size": len(gguf.reader.fields["tokenizer.ggml.tokens"].data),
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _tokenizer(gguf: Gguf) -> Tokenizer:
    kind, cut = gguf.need("tokenizer.ggml.model"), gguf.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        raise ModelUnsupported(f"GGUF tokenizer {kind!r} with pre-tokenizer {cut!r}")
    tokens: list[str] = gguf.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in gguf.need("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind_of in zip(tokens, gguf.need("tokenizer.ggml.token_type"), strict=True):
        if kind_of in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind_of == CONTROL, normalized=False)])
    return tokenizer


def _tokenizer_config(gguf: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    tokens = gguf.need("tokenizer.ggml.tokens")
    ids = {name: gguf.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    short = {"unknown": "unk", "padding": "pad"}
    special = {f"{short.get(name, name)}_token": tokens[i] for name, i in ids.items() if i is not None}
    return special | {
        # The class that takes tokenizer.json as it is; a model's own class would rebuild the pipeline.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": gguf.get("tokenizer.chat_template"),
    }


def _placed(tensors: Iterable[ReaderTensor]) -> Iterator[tuple[str, ReaderTensor]]:
    """Each tensor with its Hugging Face name."""
    for tensor in tensors:
        block, _, rest = tensor.name.partition(".")
        layer, _, part = rest.partition(".")
        part = part.removesuffix(".weight")
        if tensor.name in OUTER_NAMES:
            yield OUTER_NAMES[tensor.name], tensor
        elif block == "blk" and rest.endswith(".weight") and part in LAYER_NAMES:
            yield f"model.layers.{layer}.{LAYER_NAMES[part]}.weight", tensor
        else:
            raise ModelUnsupported(f"GGUF tensor {tensor.name!r} has no place in a Llama model")


def _weight(name: str, tensor: ReaderTensor, config: dict[str, Any]) -> torch.Tensor:
    """The tensor in bf16, rows in Hugging Face's order."""
    weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # a copy: the file's own pages are read-only
    if name.endswith("q_proj.weight"):
        weight = _unpermute(weight, config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        weight = _unpermute(weight, config["num_key_value_heads"])
    return weight.to(torch.bfloat16).contiguous()


def _unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """From rotary pairs side by side (2i, 2i+1) to pairs half a head apart (i, i + D/2)."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_safetensors(path: Path, named: Iterable[tuple[str, ReaderTensor]], config: dict[str, Any]) -> None:
    """Header first (sizes are known before the data), then one tensor after another."""
    entries = list(named)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in entries:
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF counts dimensions from the innermost
        start, end = end, end + 2 * int(tensor.n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # data starts aligned, as the format asks
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name, tensor in entries:
            out.write(_weight(name, tensor, config).view(torch.uint8).numpy().data)
        out.flush()
        os.fsync(out.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
