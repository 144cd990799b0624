"""Which model file serves which architecture: the name in config.json, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import ModelUnsupported
from .base import Model
from .llama import Llama, LlamaConfig, Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to read a config.json of this architecture, and what to build from the result."""

    read_config: Callable[[Mapping[str, Any]], LlamaConfig]
    build: Callable[..., Model]


def _llama(traits: Traits) -> Architecture:
    return Architecture(read_config=partial(LlamaConfig.from_json, traits=traits), build=Llama)


REGISTRY = {
    # Llama 1 to 3.x, SmolLM2, Yi
    "LlamaForCausalLM": _llama(Traits()),
    "MistralForCausalLM": _llama(Traits(windowed=True)),
    # Qwen2 and Qwen2.5
    "Qwen2ForCausalLM": _llama(Traits(partly_windowed=True, qkv_bias=True)),
    "Qwen3ForCausalLM": _llama(Traits(partly_windowed=True, head_norms=True)),
}


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """Raises ModelUnsupported if none of the names in config.json is known."""
    names = config.get("architectures") or []
    for name in names:
        if name in REGISTRY:
            return REGISTRY[name]
    known = ", ".join(sorted(REGISTRY))
    raise ModelUnsupported(f"config.json: no known architecture in {list(names)}; supported are {known}")
