"""From a model folder and settings to a model on a device: configuration files, device, dtype, weights.

Knows nothing of requests or pages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import EngineConfig
from .errors import EngineError, ModelUnsupported, OutOfMemory
from .linear import Making
from .models.base import Model
from .models.llama import LlamaConfig
from .models.registry import find_architecture
from .weights import fill_randomly, lacks_head, load_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is ready to run, and what its owner must know of it."""

    model: Model
    config: LlamaConfig
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    generates: bool


@torch.inference_mode()
def load(config: EngineConfig) -> Loaded:
    """Build the model that the folder describes and fill its weights."""
    fields = read_json(config.model / "config.json")
    generates = config.load_format == "dummy" or not _is_headless(config.model, fields)
    if not generates:
        fields |= {"tie_word_embeddings": True}  # What draws is there, and nobody is told of what it draws.
    architecture = find_architecture(fields)
    model_config = architecture.read_config(fields)
    max_model_len = _max_model_len(config, model_config)
    device = _device(config.device)
    dtype = _dtype(config, fields, device)
    try:
        model = architecture.build(model_config, max_model_len=max_model_len, make=Making(dtype=dtype, device=device))
        slots = list(model.slots())
        if config.load_format == "dummy":
            fill_randomly(slots, config.seed)
        else:
            load_weights(config.model, slots, model.is_ignorable)
        num_parameters = sum(slot.into.numel() for slot in slots)
        # The slots are views into weights that `finish` replaces one by one: they must not keep the old ones alive.
        del slots
        model.finish()
    except torch.OutOfMemoryError as e:
        raise OutOfMemory(f"the weights of model ({config.model}) do not fit on {device} as {dtype}") from e
    return Loaded(
        model=model,
        config=model_config,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        eos_token_ids=_eos_token_ids(config.model, fields),
        num_parameters=num_parameters,
        generates=generates,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Raises EngineError if the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise EngineError(f"{path} is not there: is {path.parent} a model's folder?") from e
    except OSError as e:
        raise EngineError(f"{path} cannot be read: {e}") from e
    except ValueError as e:  # Of its letters or of its JSON.
        raise EngineError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise EngineError(f"{path} does not hold an object")
    return value


def _is_headless(folder: Path, fields: dict[str, Any]) -> bool:
    """Whether the model was saved without its head, and so gives embeddings only."""
    return not fields.get("tie_word_embeddings", False) and lacks_head(folder)


def _max_model_len(config: EngineConfig, model: LlamaConfig) -> int:
    own = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > own:
        raise EngineError(f"max_model_len ({config.max_model_len}) is more than the model's context of {own}")
    return config.max_model_len or own


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device must be auto, cpu or cuda, not {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device is {name!r}, but there is no CUDA device")
    return device


def _dtype(config: EngineConfig, fields: dict[str, Any], device: torch.device) -> torch.dtype:
    """`auto`: what config.json says; on a CPU without fast bfloat16, and for float16 on any CPU, float32."""
    name: str = config.dtype
    if name == "auto":
        name = fields.get("dtype") or fields.get("torch_dtype") or "float32"
        if device.type == "cpu" and not (name == "bfloat16" and _has_fast_bfloat16()):
            name = "float32"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ModelUnsupported(f"config.json: dtype {name!r} is not supported ({', '.join(dtypes)} are)")
    return dtypes[name]


def _has_fast_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _eos_token_ids(folder: Path, fields: dict[str, Any]) -> tuple[int, ...]:
    """Those of config.json and generation_config.json, which often differ."""
    found = [fields.get("eos_token_id")]
    if (folder / "generation_config.json").exists():
        found.append(read_json(folder / "generation_config.json").get("eos_token_id"))
    ids: set[int] = set()
    for value in found:
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))
