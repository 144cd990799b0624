"""Runs the Triton kernels in Triton's interpreter on a CPU, and prints one JSON object: check → what is wrong, or null.

A program of its own, because TRITON_INTERPRET decides when the kernels are imported. bfloat16 and float8
are left out: the interpreter's products of the one and its rounding to the other are wrong.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"

import torch

from pressrun.kernels import (
    checks,
    penalty_checks,
    sampling_checks,
    triton_gated_product,
    triton_noise,
    triton_paged_attention,
    triton_prefills,
    triton_rms_norm,
    triton_rotate_and_write,
    triton_sample,
    triton_silu_mul,
    triton_step_inputs,
)
from pressrun.kernels.checks import AttentionCase, RotateCase
from pressrun.kernels.reference import sample as reference_sample

ROWS = ((1, 63), (5, 5), (7, 100), (1, 1), (0, 33), (1, 17), (70, 70), (1, 200), (2, 2), (20, 120))
# Query heads, kv heads, head size, rotated pairs, page size.
ROTATED = ((9, 3, 64, 32, 16), (7, 1, 80, 16, 48), (40, 2, 128, 64, 16))
# Rows 1 to 9 share 32 keys, 1 to 3 and 4 to 8 of them more; row 10 is alone in its group, row 2 has no query.
SHARED_ROWS = ((7, 20), (1, 150), (0, 144), (1, 170), (1, 200), (1, 97), (1, 98), (1, 97), (1, 300), (1, 33), (1, 64))
SHARED_LEVELS = (((1, 10, 0, 32), (10, 11, 0, 48)), ((1, 4, 32, 144), (4, 9, 32, 96)))
LARGE_PAGE_LEVELS = (((1, 9, 0, 64),), ((1, 4, 64, 128),))
SHAPES = ((6, 2, 16, 16), (7, 1, 80, 48), (4, 4, 32, 32), (9, 3, 64, 16))


def named_checks() -> dict[str, Callable[[], None]]:
    """Every check by its name."""
    found: dict[str, Callable[[], None]] = {}
    attend = triton_paged_attention.paged_attention
    for dtype in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for size in (1, 63, 1000):
            found[f"rms_norm-{size}-{name}"] = partial(
                checks.check_rms_norm, triton_rms_norm.rms_norm, 5, size, dtype, "cpu"
            )
            found[f"silu_mul-{size}-{name}"] = partial(
                checks.check_silu_mul, triton_silu_mul.silu_mul, 5, size, dtype, "cpu"
            )
        for shape in ROTATED:
            for normed, pages_dtype in ((False, None), (True, torch.float16)):
                rotated = RotateCase(
                    num_tokens=13,
                    num_heads=shape[0],
                    num_kv_heads=shape[1],
                    head_size=shape[2],
                    num_pairs=shape[3],
                    page_size=shape[4],
                    normed=normed,
                    pages_dtype=pages_dtype,
                )
                found[f"rotate_and_write-{rotated}-{name}"] = partial(
                    checks.check_rotate_and_write, triton_rotate_and_write.rotate_and_write, rotated, dtype, "cpu"
                )
        for heads, kv_heads, head_size, page_size in SHAPES if dtype == torch.float32 else SHAPES[1:2]:
            for window, num_splits in ((None, 1), (None, 3), (7, 1), (40, 3)):
                case = AttentionCase(
                    num_heads=heads,
                    num_kv_heads=kv_heads,
                    head_size=head_size,
                    page_size=page_size,
                    window=window,
                    rows=ROWS,
                    scattered=num_splits == 3,
                )
                key = f"attention-{heads}-{kv_heads}-{head_size}-{page_size}-{window}-{num_splits}-{name}"
                found[key] = partial(checks.check_attention, attend, case, dtype, "cpu", num_splits=num_splits)
    # Whole tiles and parts of one; the interpreter has no bfloat16 products.
    found["gated_product"] = partial(
        checks.check_gated_product, triton_gated_product.gated_product, 130, 136, 72, torch.float16, "cpu"
    )
    for padding in (0, 9):
        found[f"step_inputs-{padding}"] = partial(
            checks.check_step_inputs, triton_step_inputs.step_inputs, [3, 1, 300, 17, 1], 16, padding, "cpu"
        )
    for lengths in ([0, 2, 0], [1] * 1030 + [9, 1, 300]):
        found[f"prefills-{len(lengths)}"] = partial(
            checks.check_prefills, triton_prefills.find_prefills, lengths, "cpu"
        )
    decodes = AttentionCase(num_heads=8, num_kv_heads=1, head_size=32, rows=((1, 40), (2, 90), (0, 0), (1, 16)))
    found["attention-decodes-only"] = partial(
        checks.check_attention, attend, decodes, torch.float32, "cpu", max_query_len=2
    )
    shared = AttentionCase(
        num_heads=6, num_kv_heads=2, head_size=16, rows=SHARED_ROWS, levels=SHARED_LEVELS, scattered=True
    )
    paged = AttentionCase(num_heads=6, num_kv_heads=2, head_size=48, page_size=64, rows=ROWS)
    for name, case, parts in (
        ("shared", shared, {"num_splits": 1}),
        ("shared-in-parts", shared, {"num_splits": 3, "num_shared_parts": 2}),
        ("shared-with-window", replace(shared, window=200), {"num_splits": 2}),
        ("shared-in-large-pages", replace(shared, page_size=64, levels=LARGE_PAGE_LEVELS), {"num_splits": 2}),
        ("large-pages", paged, {"num_splits": 2}),
        ("large-pages-with-window", replace(paged, window=40), {}),
        ("8-bit-pages", replace(paged, pages_dtype=torch.float8_e4m3fn), {}),
        ("8-bit-pages-shared", replace(shared, pages_dtype=torch.float8_e4m3fn), {}),
    ):
        for dtype in (torch.float32, torch.float16):
            found[f"attention-{name}-{dtype}"] = partial(checks.check_attention, attend, case, dtype, "cpu", **parts)
    draw = partial(triton_sample.sample, block_v=512)
    for vocab_size, dtype in (
        (63, torch.float32),
        (1000, torch.float32),
        (1000, torch.float16),
        (1000, torch.bfloat16),
    ):
        found[f"sample-{vocab_size}-{dtype}"] = partial(
            sampling_checks.check_sample, draw, 14, vocab_size, dtype, "cpu", twin=reference_sample.sample
        )
    # Of which the list of what reaches the floor has to be made again, or has no room.
    crowded = partial(triton_sample.sample, block_v=512, most_listed=32)
    found["sample-crowded"] = partial(
        sampling_checks.check_sample, crowded, 14, 1000, torch.bfloat16, "cpu", twin=reference_sample.sample
    )
    for name, sample, vocab_size, dtype, counts in (
        ("small", draw, 63, torch.float32, torch.int16),
        ("large", draw, 1000, torch.bfloat16, torch.int32),
        ("crowded", crowded, 1000, torch.bfloat16, torch.int16),
    ):
        found[f"sample-penalised-{name}"] = partial(
            penalty_checks.check_penalties, sample, 15, vocab_size, dtype, "cpu", counts
        )
    found["sample-noise"] = partial(sampling_checks.check_noise_words, triton_noise.noise_words, "cpu")
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
