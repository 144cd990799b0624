"""Runs the Triton kernels in Triton's interpreter on a CPU, and prints one JSON object: check → what is wrong, or null.

A program of its own, because TRITON_INTERPRET decides when the kernels are imported. bfloat16 is left out: the
interpreter's products of it are wrong.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"

import torch

from pressrun.kernels import (
    checks,
    triton_kv_write,
    triton_paged_attention,
    triton_rms_norm,
    triton_rotary,
    triton_silu_mul,
)
from pressrun.kernels.checks import AttentionCase

ROWS = ((1, 63), (5, 5), (7, 100), (1, 1), (0, 33), (1, 17), (70, 70), (1, 200), (2, 2), (20, 120))
SHAPES = ((6, 2, 16, 16), (7, 1, 80, 48), (4, 4, 32, 32), (9, 3, 64, 16))


def named_checks() -> dict[str, Callable[[], None]]:
    """Every check by its name."""
    found: dict[str, Callable[[], None]] = {}
    norms = triton_rms_norm.rms_norm, triton_rms_norm.add_rms_norm
    attend = triton_paged_attention.paged_attention
    for dtype in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for size in (1, 63, 1000):
            found[f"rms_norm-{size}-{name}"] = partial(checks.check_rms_norm, *norms, 5, size, dtype, "cpu")
            found[f"silu_mul-{size}-{name}"] = partial(
                checks.check_silu_mul, triton_silu_mul.silu_mul, 5, size, dtype, "cpu"
            )
        for shape in ((9, 3, 64, 32), (7, 1, 80, 16)):
            found[f"rotary-{shape}-{name}"] = partial(
                checks.check_rotary, triton_rotary.rotary, 5, *shape, dtype, "cpu"
            )
        for page_size in (16, 48):
            found[f"kv_write-{page_size}-{name}"] = partial(
                checks.check_kv_write, triton_kv_write.kv_write, 33, 3, 80, page_size, dtype, "cpu"
            )
        for heads, kv_heads, head_size, page_size in SHAPES:
            for window, num_splits in ((None, 1), (None, 3), (7, 1), (40, 3)):
                case = AttentionCase(
                    num_heads=heads,
                    num_kv_heads=kv_heads,
                    head_size=head_size,
                    page_size=page_size,
                    window=window,
                    rows=ROWS,
                )
                key = f"attention-{heads}-{kv_heads}-{head_size}-{page_size}-{window}-{num_splits}-{name}"
                found[key] = partial(checks.check_attention, attend, case, dtype, "cpu", num_splits=num_splits)
    decodes = AttentionCase(num_heads=8, num_kv_heads=1, head_size=32, rows=((1, 40), (2, 90), (0, 3), (1, 16)))
    found["attention-decodes-only"] = partial(
        checks.check_attention, attend, decodes, torch.float32, "cpu", max_query_len=2, max_context_len=90
    )
    return found


def outcome(check: Callable[[], None]) -> str | None:
    """Run one check; return the traceback of what it raised."""
    torch.manual_seed(20)
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    json.dump({name: outcome(check) for name, check in named_checks().items()}, sys.stdout)
