"""How large things get: the KV cache, the steps and the number of rows, as settings say or as the device has room.

Knows nothing of who will own the pages. Every failure names the setting to change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.compiling import compiling
from .config import EngineConfig
from .errors import OutOfMemory
from .loading import Loaded
from .models.base import KVPages, StepTensors
from .penalties import mark_bytes

GIB = 1 << 30

# On a CPU a step is bound by its products from few rows on; a GPU wants hundreds of rows and thousands of tokens.
CPU_ROWS, CPU_STEP_TOKENS = 256, 2048
GPU_MIN_ROWS, GPU_MAX_ROWS, GPU_STEP_TOKENS = 256, 2048, 8192
# A page of 64 tokens is one tile of attention's, which the tensor memory accelerator loads in one piece.
CPU_PAGE_SIZE, GPU_PAGE_SIZE = 16, 64
# The context that a row is taken to have when rows are counted from pages.
TOKENS_PER_ROW = 256
# A step of fewer tokens is bound by reading the weights, or by its launch if that takes the host more than the product.
MIN_PACED_TOKENS, PACED_OPERATIONS = 512, 7 * 10**12
# A step of more takes the device longer than the host, which needs some 30 ms to launch it kernel by kernel.
GRAPHED_OPERATIONS = 4 * 10**13
# A step that is launched between the parts of another has no more tokens than this.
URGENT_TOKENS = 1024
# What CUDA graphs keep beside their tensors, and what fragments of memory cannot be used.
GRAPHS_BYTES = GIB // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the settings leave open, decided."""

    num_rows: int
    num_step_tokens: int  # at most
    num_paced_tokens: int  # at least, where steps are paced (`pacing.py`)
    num_graphed_tokens: int  # of a mixed step that is captured (`graphs.py`), at most; 0: no step is captured
    num_urgent_tokens: int  # of a step that is launched between the parts of another, at most
    page_size: int


def choose_sizes(config: EngineConfig, loaded: Loaded) -> Sizes:
    """Rows, tokens of steps and pages, as the settings say or by device and model."""
    on_gpu = loaded.device.type == "cuda"
    step_tokens = config.max_num_batched_tokens or (GPU_STEP_TOKENS if on_gpu else CPU_STEP_TOKENS)
    num_rows = config.max_num_seqs or (_gpu_rows(config, loaded) if on_gpu else CPU_ROWS)
    paced_tokens = max(MIN_PACED_TOKENS, PACED_OPERATIONS // (2 * loaded.num_parameters)) if on_gpu else step_tokens
    graphed_tokens = max(MIN_PACED_TOKENS, GRAPHED_OPERATIONS // (2 * loaded.num_parameters))
    has_graphs = on_gpu and not config.enforce_eager
    return Sizes(
        num_rows=num_rows,
        num_step_tokens=step_tokens,
        num_paced_tokens=min(paced_tokens, step_tokens),
        num_graphed_tokens=min(graphed_tokens, step_tokens) if has_graphs else 0,
        num_urgent_tokens=min(URGENT_TOKENS, step_tokens),
        page_size=_page_size(config, loaded),
    )


def make_pages(config: EngineConfig, loaded: Loaded, sizes: Sizes) -> KVPages:
    """The KV cache, as large as the settings say. Raises OutOfMemory."""
    layout = _layout(config, loaded)
    return _allocate(config, _num_pages(config, loaded, layout, sizes), layout)


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


def _layout(config: EngineConfig, loaded: Loaded) -> _Layout:
    page_shape = (loaded.model.num_kv_heads, _page_size(config, loaded), loaded.config.head_dim)
    num_layers = loaded.config.num_hidden_layers
    dtype = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else loaded.dtype
    return _Layout(num_layers=num_layers, page_shape=page_shape, dtype=dtype, device=loaded.device)


def _page_size(config: EngineConfig, loaded: Loaded) -> int:
    return config.page_size or (GPU_PAGE_SIZE if loaded.device.type == "cuda" else CPU_PAGE_SIZE)


def _gpu_rows(config: EngineConfig, loaded: Loaded) -> int:
    """So many that contexts of a few hundred tokens fill the pages."""
    layout = _layout(config, loaded)
    if config.num_pages is not None:
        num_pages = config.num_pages
    else:
        total = torch.cuda.get_device_properties(layout.device).total_memory
        left = int(total * config.gpu_memory_utilization) - torch.cuda.memory_allocated(layout.device)
        num_pages = left // layout.page_bytes
    num_rows = num_pages * _page_size(config, loaded) // TOKENS_PER_ROW // 128 * 128
    return max(GPU_MIN_ROWS, min(GPU_MAX_ROWS, num_rows))


def _num_pages(config: EngineConfig, loaded: Loaded, layout: _Layout, sizes: Sizes) -> int:
    if config.num_pages is not None:
        return config.num_pages
    page_bytes = layout.page_bytes
    if layout.device.type == "cuda":
        peak_bytes = _measure_peak(config, loaded, layout, sizes)
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
def _measure_peak(config: EngineConfig, loaded: Loaded, layout: _Layout, sizes: Sizes) -> int:
    """Bytes of the card in use at the height of the largest step, all that is there before it included."""
    device, page_size, num_tokens = layout.device, sizes.page_size, sizes.num_step_tokens
    num_pages = -(-num_tokens // page_size)
    kv = _allocate(config, num_pages, layout)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    num_columns = -(-loaded.max_model_len // page_size)
    try:
        step = _largest_step(num_pages, num_tokens, page_size, num_columns, device)
        with compiling(device):
            loaded.model.forward(torch.zeros_like(step.positions), step, kv)
        hidden_SE = loaded.model.forward(torch.zeros_like(step.positions), step, kv)
        # Drawing works on float32 logits of the rows that ask for more than the likeliest token, in a few copies.
        logits_SV = loaded.model.logits(hidden_SE[: sizes.num_rows])
        logits_SV[:64].float().softmax(-1).cumsum(-1)
    except torch.OutOfMemoryError as e:
        raise OutOfMemory(
            f"a step does not fit: lower max_num_batched_tokens ({num_tokens}) or max_num_seqs ({sizes.num_rows})"
        ) from e
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - num_pages * layout.page_bytes
    captured = _captured_bytes(loaded, sizes, torch.cuda.max_memory_allocated(device) - before)
    row_bytes = num_columns * 4 + mark_bytes(loaded.config.vocab_size)
    del kv, hidden_SE, logits_SV, step
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    outside_of_torch = total - free - torch.cuda.memory_reserved(device)
    return peak + outside_of_torch + sizes.num_rows * row_bytes + (captured if sizes.num_graphed_tokens else 0)


def _captured_bytes(loaded: Loaded, sizes: Sizes, step_bytes: int) -> int:
    """What captured steps keep: their own memory for the largest ones, and the logits."""
    logits_bytes = sizes.num_rows * loaded.config.vocab_size * loaded.dtype.itemsize
    num_tokens = min(sizes.num_step_tokens, max(sizes.num_rows, sizes.num_graphed_tokens)) + sizes.num_urgent_tokens
    return step_bytes * num_tokens // sizes.num_step_tokens + logits_bytes + GRAPHS_BYTES


def _largest_step(
    num_rows: int, num_tokens: int, page_size: int, num_columns: int, device: torch.device
) -> StepTensors:
    """A step of one page for every row, whose lines of the table are as long as later ones."""
    indices_T = torch.arange(num_tokens, dtype=torch.int32, device=device)
    starts_S1 = (torch.arange(num_rows + 1, dtype=torch.int32, device=device) * page_size).clamp_(max=num_tokens)
    return StepTensors(
        positions=indices_T % page_size,
        slots=indices_T,
        page_table=torch.arange(num_rows, dtype=torch.int32, device=device).unsqueeze(1).repeat(1, num_columns),
        rows=torch.arange(num_rows, dtype=torch.int32, device=device),
        query_starts=starts_S1,
        context_lens=starts_S1.diff(),
        last=starts_S1[1:] - 1,
        max_query_len=page_size,
        shared=None,
    )


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
