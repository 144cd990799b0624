"""The engine's settings, complete and checked when built; nothing edits them later.

Knows nothing of where they come from (environment, command line), nor of the model inside the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import EngineError

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Names and meanings are vLLM's where it has them.

    `model` is a folder with config.json and *.safetensors (with `load_format` "dummy" config.json is enough).
    `max_model_len` None takes the model's own. `max_num_seqs` and `max_num_batched_tokens` None choose by device and
    by what the pages hold. A page holds `page_size` tokens, on a GPU 16 or a multiple; None chooses by device.
    `num_pages` None sizes the page pool from `kv_cache_gb` (GiB) on a CPU and from
    `gpu_memory_utilization` (a share of the card's memory) on a GPU. `kv_cache_dtype` "fp8" keeps keys and values as
    float8_e4m3fn: twice the tokens, rounded. `enforce_eager` forbids CUDA graphs, which a CPU has none of.
    `async_scheduling` None plans a step while the one before still runs on a GPU, and one after the other on a CPU,
    which has nothing to gain. `pooling` says which hidden states make an embedding; "auto" is what the folder says.
    """

    model: Path
    dtype: DtypeName = "auto"
    device: str = "auto"
    load_format: Literal["safetensors", "dummy"] = "safetensors"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    page_size: int | None = None
    num_pages: int | None = None
    kv_cache_gb: float = 1.0
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    pooling: Literal["auto", "last", "mean", "none"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("page_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_pages"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        _require(self.kv_cache_gb > 0, f"kv_cache_gb must be positive, not {self.kv_cache_gb}")
        share = self.gpu_memory_utilization
        _require(0 < share <= 1, f"gpu_memory_utilization must be above 0 and at most 1, not {share}")
        _require(
            self.dtype in ("auto", "float32", "bfloat16", "float16"),
            f"dtype must be auto, float32, bfloat16 or float16, not {self.dtype!r}",
        )
        _require(
            self.kv_cache_dtype in ("auto", "fp8"), f"kv_cache_dtype must be auto or fp8, not {self.kv_cache_dtype!r}"
        )
        _require(
            self.pooling in ("auto", "last", "mean", "none"),
            f"pooling must be auto, last, mean or none, not {self.pooling!r}",
        )
        _require(
            self.load_format in ("safetensors", "dummy"),
            f"load_format must be safetensors or dummy, not {self.load_format!r}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EngineError(message)
