"""SmolLM2 as converted from its GGUF file, judged by transformers; and small GGUF files made here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pressrun.engine.errors import ModelUnsupported, WeightsError
from pressrun.engine.gguf import convert_gguf

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 32, 4, 2, 8, 64, 2


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.model
@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # 12.5 %\r\n",
        "  leading and trailing  ",
        "naïve café 日本語 🙂 ​",
        "<|im_start|>user\nhi<|im_end|>\n",
        "",
    ],
)
def test_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.model
def test_prompts_come_back_from_their_tokens(tokenizer: Any, humaneval: list[str], mtbench: list[str]) -> None:
    for text in humaneval + mtbench:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.model
def test_numbers_are_read_digit_by_digit(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("in 1984").input_ids)
    assert tokens == ["in", "Ġ", "1", "9", "8", "4"]


@pytest.mark.model
def test_control_tokens_are_single_and_special(tokenizer: Any) -> None:
    assert tokenizer("<|im_start|>").input_ids == [1]
    assert tokenizer("<|im_start|>", split_special_tokens=True).input_ids != [1]
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


@pytest.mark.model
def test_the_configuration_is_that_of_smollm2(smollm2: Path) -> None:
    config = AutoConfig.from_pretrained(smollm2)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rms_norm_eps, config.max_position_embeddings) == (1e-5, 8192)
    assert (config.tie_word_embeddings, config.eos_token_id) == (True, 2)


@pytest.mark.model
def test_a_chat_prompt_gets_a_sensible_greedy_answer(smollm2: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(tokens)
    assert tokens[-1] == tokenizer.eos_token_id


def interleaved(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Row order of q and k in GGUF: row i of a head's first half, then row i of its second half, and so on."""
    heads = weight.reshape(num_heads, HEAD_DIM, -1)
    order = [row for i in range(HEAD_DIM // 2) for row in (i, i + HEAD_DIM // 2)]
    return heads[:, order].reshape(weight.shape)


def write_gguf(path: Path, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama of random weights; answers them under their Hugging Face names."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_context_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
    tokens = ["<end>", "<tool>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 4, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,), "output": (len(tokens), HIDDEN)}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(LAYERS):
        for name, theirs, shape in (
            ("attn_norm", "input_layernorm", (HIDDEN,)),
            ("attn_q", "self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
            ("attn_k", "self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("attn_v", "self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("attn_output", "self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
            ("ffn_norm", "post_attention_layernorm", (HIDDEN,)),
            ("ffn_gate", "mlp.gate_proj", (INNER, HIDDEN)),
            ("ffn_up", "mlp.up_proj", (INNER, HIDDEN)),
            ("ffn_down", "mlp.down_proj", (HIDDEN, INNER)),
        ):
            shapes[f"blk.{i}.{name}"], names[f"blk.{i}.{name}"] = shape, f"model.layers.{i}.{theirs}"
    weights = {}
    for name in [name for name in shapes if name not in changes.get("without", ())]:
        weight = random.standard_normal(shapes[name]).astype(np.float32)
        weights[f"{names[name]}.weight"] = weight
        heads = HEADS if name.endswith("attn_q") else KV_HEADS if name.endswith("attn_k") else None
        writer.add_tensor(f"{name}.weight", interleaved(weight, heads) if heads else weight)
    for name in changes.get("extra", ()):
        writer.add_tensor(name, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_every_weight_lands_under_its_name_with_its_rows_in_order(folder: Path) -> None:
    weights = write_gguf(folder.parent / "a.gguf")
    convert_gguf(folder.parent / "a.gguf", folder)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name], torch.from_numpy(weight).to(torch.bfloat16)), name
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_without_a_head_shares_its_embedding(folder: Path) -> None:
    write_gguf(folder.parent / "a.gguf", without=["output"])
    convert_gguf(folder.parent / "a.gguf", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_user_defined_tokens_are_whole_but_not_special(folder: Path) -> None:
    write_gguf(folder.parent / "a.gguf")
    convert_gguf(folder.parent / "a.gguf", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab<tool>a<end>").input_ids == [4, 1, 2, 0]
    assert tokenizer.decode([4, 1, 2, 0], skip_special_tokens=True) == "ab<tool>a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "GGUF architecture 'mamba'"),
        ({"pre": "klingon"}, "pre-tokenizer 'klingon'"),
        ({"extra": ["rope_freqs.weight"]}, "'rope_freqs.weight' has no place"),
        ({"extra": ["blk.0.attn_q.bias"]}, "'blk.0.attn_q.bias' has no place"),
    ],
)
def test_what_is_not_known_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_gguf(folder.parent / "a.gguf", **changes)
    with pytest.raises(ModelUnsupported, match=re.escape(message)):
        convert_gguf(folder.parent / "a.gguf", folder)


def test_a_file_that_is_not_gguf_is_refused(folder: Path) -> None:
    (folder.parent / "a.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(WeightsError, match="not a readable GGUF file"):
        convert_gguf(folder.parent / "a.gguf", folder)
