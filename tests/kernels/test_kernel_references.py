"""The references, reached through the public functions as on any CPU, against plain formulas in float64."""

import pytest
import torch

from pressrun.kernels import (
    checks,
    gated_product,
    paged_attention,
    penalty_checks,
    rms_norm,
    rotate_and_write,
    sample,
    sampling_checks,
    silu_mul,
    step_inputs,
)
from pressrun.kernels.checks import AttentionCase, RotateCase
from pressrun.kernels.reference import paged_attention as reference
from pressrun.kernels.reference import prefills as reference_prefills

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Query and context tokens: decodes, a whole prompt, chunks, a row with nothing to do, lengths on and off page edges.
MIXED_ROWS = ((1, 63), (5, 5), (7, 100), (1, 1), (0, 33), (1, 17), (40, 40), (1, 160), (2, 2), (63, 1000), (1, 1000))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 576), (63, 1000), (7, 63)])
def test_norms_match_the_formula(num_tokens: int, size: int, dtype: torch.dtype) -> None:
    checks.check_rms_norm(rms_norm.rms_norm, num_tokens, size, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1536), (63, 1000), (7, 63)])
def test_activation_matches_the_formula(num_tokens: int, size: int, dtype: torch.dtype) -> None:
    checks.check_silu_mul(silu_mul.silu_mul, num_tokens, size, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "num_features", "num_inputs"), [(1, 1536, 576), (63, 1000, 100), (200, 63, 63)])
def test_gated_layers_match_the_formula(
    num_tokens: int, num_features: int, num_inputs: int, dtype: torch.dtype
) -> None:
    checks.check_gated_product(gated_product.gated_product, num_tokens, num_features, num_inputs, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pages_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "pairs", "page_size"),
    [(9, 3, 64, 32, 16), (4, 4, 80, 16, 48), (7, 1, 96, 48, 16)],
)
def test_heads_are_normed_and_rotated_and_land_in_their_slots(
    heads: int,
    kv_heads: int,
    head_size: int,
    pairs: int,
    page_size: int,
    normed: bool,
    pages_dtype: torch.dtype | None,
    dtype: torch.dtype,
) -> None:
    for num_tokens in (1, 63):
        case = RotateCase(
            num_tokens=num_tokens,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=head_size,
            num_pairs=pairs,
            page_size=page_size,
            normed=normed,
            pages_dtype=pages_dtype,
        )
        checks.check_rotate_and_write(rotate_and_write.rotate_and_write, case, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 16, 50])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "page_size"), [(9, 3, 64, 16), (7, 1, 80, 48), (4, 4, 96, 32), (16, 2, 128, 16)]
)
def test_attention_of_mixed_rows_matches_dense_attention(
    heads: int, kv_heads: int, head_size: int, page_size: int, window: int | None, dtype: torch.dtype
) -> None:
    case = AttentionCase(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        page_size=page_size,
        window=window,
        rows=MIXED_ROWS,
    )
    checks.check_attention(paged_attention.paged_attention, case, dtype, "cpu")


@pytest.mark.parametrize("window", [None, 20])
def test_decodes_worked_on_in_many_groups_match_dense_attention(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "GROUP_BYTES", 20_000)
    rows = tuple((1, 1 + 7 * i % 90) for i in range(60))
    case = AttentionCase(num_heads=4, num_kv_heads=2, head_size=16, window=window, rows=rows)
    checks.check_attention(paged_attention.paged_attention, case, torch.float32, "cpu")


def test_rows_find_their_pages_in_any_line_of_the_table() -> None:
    case = AttentionCase(num_heads=4, num_kv_heads=2, head_size=16, rows=((0, 0), *MIXED_ROWS), scattered=True)
    checks.check_attention(paged_attention.paged_attention, case, torch.float32, "cpu")


def test_shared_prefixes_change_no_result() -> None:
    levels = (((0, 4, 0, 32),), ((1, 3, 32, 80),))
    rows = ((1, 90), (1, 80), (1, 100), (1, 33))
    case = AttentionCase(num_heads=4, num_kv_heads=2, head_size=16, rows=rows, levels=levels)
    checks.check_attention(paged_attention.paged_attention, case, torch.float32, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_8_bit_pages_is_that_over_their_rounded_values(dtype: torch.dtype) -> None:
    case = AttentionCase(num_heads=4, num_kv_heads=2, head_size=16, rows=MIXED_ROWS, pages_dtype=torch.float8_e4m3fn)
    checks.check_attention(paged_attention.paged_attention, case, dtype, "cpu")


def test_a_call_without_queries_returns_nothing() -> None:
    case = AttentionCase(num_heads=4, num_kv_heads=2, head_size=16, rows=((0, 5), (0, 17)))
    inputs = checks.attention_inputs(case, torch.float32, "cpu")
    assert paged_attention.paged_attention(*inputs.arguments, scale=1.0).shape == (0, 4, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [63, 1000, 5000])
def test_draws_match_the_textbook_and_depend_on_nothing_beside_them(vocab_size: int, dtype: torch.dtype) -> None:
    sampling_checks.check_sample(sample.sample, 100, vocab_size, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab_size", "counts"), [(63, torch.int32), (1000, torch.int16), (5000, torch.int32)])
def test_draws_with_penalties_are_those_from_changed_logits_and_are_noted(
    vocab_size: int, counts: torch.dtype, dtype: torch.dtype
) -> None:
    penalty_checks.check_penalties(sample.sample, 70, vocab_size, dtype, "cpu", counts)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    sampling_checks.check_frequencies(sample.sample, 20000, "cpu")


def test_a_check_sees_one_wrong_vector_and_one_that_is_missing() -> None:
    exact = torch.randn(1000, 64, dtype=torch.float64)
    checks.assert_close(exact.bfloat16(), exact, "rounded")
    for damage in (1.1 * exact[500], torch.full((64,), float("nan"))):
        damaged = exact.bfloat16()
        damaged[500] = damage
        with pytest.raises(AssertionError, match="relative error"):
            checks.assert_close(damaged, exact, "damaged")


STEPS = ([1], [1] * 40, [3, 1, 300, 17, 1])


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("lengths", STEPS)
def test_a_steps_inputs_follow_from_its_plan(lengths: list[int], padding: int) -> None:
    checks.check_step_inputs(step_inputs.step_inputs, lengths, 16, padding, "cpu")


@pytest.mark.parametrize("lengths", [*STEPS, [0, 2, 0], [1, 7] * 20])
def test_prefills_are_the_rows_of_more_than_one_query(lengths: list[int]) -> None:
    checks.check_prefills(reference_prefills.find_prefills, lengths, "cpu")
