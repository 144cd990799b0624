"""How many pages the KV cache gets: asked for outright, or sized from a setting and what the device has left.

Knows nothing of who will own the pages. Every failure names the setting to change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import EngineConfig
from .errors import OutOfMemory
from .loading import Loaded
from .models.base import KVPages, StepTensors

GIB = 1 << 30


def make_pages(config: EngineConfig, loaded: Loaded) -> KVPages:
    """The KV cache, as large as the settings say. Raises OutOfMemory."""
    page_shape = (loaded.model.num_kv_heads, config.page_size, loaded.config.head_dim)
    num_layers = loaded.config.num_hidden_layers
    layout = _Layout(num_layers=num_layers, page_shape=page_shape, dtype=loaded.dtype, device=loaded.device)
    return _allocate(config, _num_pages(config, loaded, layout), layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What the pages of all layers are made of."""

    num_layers: int
    page_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device

    @property
    def page_bytes(self) -> int:
        """Of one page's keys and values in all layers."""
        return 2 * self.num_layers * math.prod(self.page_shape) * self.dtype.itemsize


def _num_pages(config: EngineConfig, loaded: Loaded, layout: _Layout) -> int:
    if config.num_pages is not None:
        return config.num_pages
    page_bytes = layout.page_bytes
    if layout.device.type == "cuda":
        peak_bytes = _measure_peak(config, loaded, layout)
        total = torch.cuda.get_device_properties(layout.device).total_memory
        setting = f"gpu_memory_utilization ({config.gpu_memory_utilization:g} of {total / GIB:.1f} GiB)"
        left = int(total * config.gpu_memory_utilization) - peak_bytes
    else:
        setting = f"kv_cache_gb ({config.kv_cache_gb:g})"
        left = int(config.kv_cache_gb * GIB)
    if left < page_bytes:
        raise OutOfMemory(f"{setting} leaves {left / GIB:.2f} GiB for the KV cache, not even one page: raise it")
    return left // page_bytes


def _allocate(config: EngineConfig, num_pages: int, layout: _Layout) -> KVPages:
    num_bytes = num_pages * layout.page_bytes
    setting = _setting(config, layout.device)
    available = _available_bytes() if layout.device.type == "cpu" else None
    if available is not None and num_bytes > available:
        raise OutOfMemory(
            f"a KV cache of {num_bytes / GIB:.2f} GiB does not fit into the {available / GIB:.2f} GiB of memory that "
            f"are available: lower {setting}"
        )
    shape = (num_pages, *layout.page_shape)
    try:
        pages = [torch.empty(shape, dtype=layout.dtype, device=layout.device) for _ in range(2 * layout.num_layers)]
    except RuntimeError as e:  # torch.OutOfMemoryError on a GPU is one; on a CPU there is no other
        raise OutOfMemory(f"a KV cache of {num_bytes / GIB:.2f} GiB does not fit: lower {setting}") from e
    return KVPages(keys=pages[: layout.num_layers], values=pages[layout.num_layers :])


@torch.inference_mode()
def _measure_peak(config: EngineConfig, loaded: Loaded, layout: _Layout) -> int:
    """Bytes of the card in use at the height of the largest step, all that is there before it included."""
    device, page_size = layout.device, config.page_size
    num_tokens = config.max_num_batched_tokens
    num_rows = -(-num_tokens // page_size)
    kv = _allocate(config, num_rows, layout)
    torch.cuda.reset_peak_memory_stats(device)
    indices_T = torch.arange(num_tokens, device=device)
    starts_S1 = (torch.arange(num_rows + 1, device=device) * page_size).clamp_(max=num_tokens)
    step = StepTensors(
        positions=indices_T % min(page_size, loaded.max_model_len),
        slots=indices_T,
        page_table=torch.arange(num_rows, dtype=torch.int32, device=device).unsqueeze(1),
        query_starts=starts_S1,
        context_lens=starts_S1.diff(),
        drawing=indices_T[: config.max_num_seqs],
        max_query_len=page_size,
        max_context_len=page_size,
    )
    try:
        hidden_DE = loaded.model.forward(torch.zeros_like(indices_T), step, kv)
        # Drawing works on float32 logits, in a few copies.
        loaded.model.logits(hidden_DE).float().softmax(-1).cumsum(-1)
    except torch.OutOfMemoryError as e:
        raise OutOfMemory(
            f"a step does not fit: lower max_num_batched_tokens ({num_tokens}) or max_num_seqs ({config.max_num_seqs})"
        ) from e
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - num_rows * layout.page_bytes
    row_bytes = loaded.max_model_len * 4 * (1 + 1 / page_size)
    del kv, hidden_DE
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    outside_of_torch = total - free - torch.cuda.memory_reserved(device)
    return peak + outside_of_torch + int(config.max_num_seqs * row_bytes)


def _setting(config: EngineConfig, device: torch.device) -> str:
    if config.num_pages is not None:
        return f"num_pages ({config.num_pages})"
    if device.type == "cuda":
        return f"gpu_memory_utilization ({config.gpu_memory_utilization:g})"
    return f"kv_cache_gb ({config.kv_cache_gb:g})"


def _available_bytes() -> int | None:
    """Memory that can be used without swapping, as Linux estimates it; None elsewhere."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
