"""Our models against transformers' own, with tiny random weights in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.errors import EngineError, ModelUnsupported
from pressrun.engine.request import Request

PROMPT = [(7 * i * i + 3 * i) % 251 + 3 for i in range(45)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4, "head_dim": 24}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
        ("mistral", {"sliding_window": 11, "head_dim": 32}),
        ("mistral", {"sliding_window": None, "head_dim": 16}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 11}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
        ("qwen3", {"head_dim": 32}),
        ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    make_model: Callable[..., Path],
    make_engine: Callable[..., Any],
    ask: Callable[..., Request],
    model_type: str,
    fields: dict[str, Any],
) -> None:
    folder = make_model(model_type, **fields)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Chunks and pages that fit neither the prompt nor each other.
    engine = make_engine(folder, max_num_batched_tokens=17, page_size=4)
    other = ask(PROMPT[20:], id="b", max_tokens=12, ignore_eos=True)
    request = ask(PROMPT, max_tokens=12, logprobs=256, ignore_eos=True)
    output = engine.finish([other, request])["a"]
    with torch.inference_mode():
        logits = theirs(torch.tensor([PROMPT + output.token_ids[:-1]])).logits[0, len(PROMPT) - 1 :]
    assert output.token_ids == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1)
    ours = torch.zeros_like(expected)
    for i, found in enumerate(output.logprobs):
        ids, values = zip(*found.top, strict=True)
        ours[i, list(ids)] = torch.tensor(values)
    # Float32 sums of a hundred terms, in another order: 1e-5 is ten times what was seen.
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_layers_with_a_window_are_found_as_older_transformers_wrote_them(
    make_model: Callable[..., Path], make_engine: Callable[..., Any], ask: Callable[..., Request]
) -> None:
    folder = make_model("qwen2", use_sliding_window=True, sliding_window=11, max_window_layers=1)
    new = make_engine(folder).finish([ask(PROMPT)])["a"]
    rewrite(folder, layer_types=None)
    assert make_engine(folder).finish([ask(PROMPT)])["a"].token_ids == new.token_ids
    rewrite(folder, max_window_layers=2)
    assert make_engine(folder).finish([ask(PROMPT)])["a"].token_ids != new.token_ids


def test_rope_scaling_as_older_transformers_wrote_it_is_read(
    make_model: Callable[..., Path], make_engine: Callable[..., Any], ask: Callable[..., Request]
) -> None:
    folder = make_model(rope_parameters=LLAMA3)
    new = make_engine(folder).finish([ask(PROMPT)])["a"]
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    rewrite(folder, rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling)
    assert make_engine(folder).finish([ask(PROMPT)])["a"].token_ids == new.token_ids


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None}, "architecture"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "'factor'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": -1}, "sliding_window"),
        ({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "sliding_window": 0}, "sliding_window"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["chunked_attention"]},
            "layer_types",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_built_is_refused_by_name(tiny: Path, fields: dict[str, Any], message: str) -> None:
    rewrite(tiny, **fields)
    with pytest.raises(ModelUnsupported, match=message):
        Engine(EngineConfig(model=tiny, device="cpu", dtype="auto"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json is not there"):
        Engine(EngineConfig(model=tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineError, match="not JSON"):
        Engine(EngineConfig(model=tmp_path))


def rewrite(folder: Path, **fields: Any) -> None:
    """Change fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
