"""The Triton kernels on a GPU at the shapes of real models, against the same plain formulas as the references."""

import pytest
import torch

from pressrun.kernels import checks, kv_write, paged_attention, rms_norm, rotary, silu_mul, triton_paged_attention
from pressrun.kernels.checks import AttentionCase

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# Query heads, kv heads, head size: Llama 3, SmolLM2, Qwen2.5-7B, one kv head, Phi-2's head, Phi-3's, Gemma's.
SHAPES = [(32, 8, 128), (9, 3, 64), (28, 4, 128), (8, 1, 128), (32, 32, 80), (32, 32, 96), (16, 16, 256)]

MIXED_ROWS = (
    *((1, 1 + 37 * i) for i in range(40)),
    *((0, 64), (2, 2), (3, 1000), (63, 63), (63, 1000), (129, 130), (600, 2000), (1, 4096), (1000, 1000)),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 576), (63, 1000), (2048, 4096), (1000, 128), (63, 8192)])
def test_norms_match_the_formula(num_tokens: int, size: int, dtype: torch.dtype, cuda: str) -> None:
    checks.check_rms_norm(rms_norm.rms_norm, rms_norm.add_rms_norm, num_tokens, size, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1536), (63, 1000), (2048, 14336)])
def test_activation_matches_the_formula(num_tokens: int, size: int, dtype: torch.dtype, cuda: str) -> None:
    checks.check_silu_mul(silu_mul.silu_mul, num_tokens, size, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 63, 1000])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "pairs"), [(32, 8, 128, 64), (9, 3, 64, 32), (32, 32, 80, 16), (28, 4, 96, 48)]
)
def test_rotation_matches_complex_multiplication(
    heads: int, kv_heads: int, head_size: int, pairs: int, num_tokens: int, dtype: torch.dtype, cuda: str
) -> None:
    checks.check_rotary(rotary.rotary, num_tokens, heads, kv_heads, head_size, pairs, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_size", "page_size"), [(8, 128, 16), (3, 64, 16), (1, 80, 48), (4, 256, 64)])
def test_keys_and_values_land_in_their_slots_and_nowhere_else(
    kv_heads: int, head_size: int, page_size: int, dtype: torch.dtype, cuda: str
) -> None:
    checks.check_kv_write(kv_write.kv_write, 1000, kv_heads, head_size, page_size, dtype, cuda)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 50, 1000])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), SHAPES)
def test_attention_of_mixed_rows_matches_dense_attention(
    heads: int, kv_heads: int, head_size: int, window: int | None, dtype: torch.dtype, cuda: str
) -> None:
    case = AttentionCase(num_heads=heads, num_kv_heads=kv_heads, head_size=head_size, window=window, rows=MIXED_ROWS)
    checks.check_attention(paged_attention.paged_attention, case, dtype, cuda)


@pytest.mark.parametrize("page_size", [16, 48, 64, 256])
def test_attention_takes_pages_of_any_multiple_of_sixteen(page_size: int, cuda: str) -> None:
    case = AttentionCase(num_heads=32, num_kv_heads=8, head_size=128, page_size=page_size, rows=MIXED_ROWS)
    checks.check_attention(paged_attention.paged_attention, case, torch.bfloat16, cuda)


@pytest.mark.parametrize("num_splits", [1, 2, 7, 64])
@pytest.mark.parametrize("window", [None, 600])
def test_decodes_in_any_number_of_parts_match_dense_attention(num_splits: int, window: int | None, cuda: str) -> None:
    rows = tuple((1, context) for context in (1, 15, 16, 17, 63, 1000, 4096, 8000))
    case = AttentionCase(num_heads=32, num_kv_heads=8, head_size=128, window=window, rows=rows)
    attend = triton_paged_attention.paged_attention
    checks.check_attention(attend, case, torch.bfloat16, cuda, num_splits=num_splits, max_query_len=1)


def test_offsets_beyond_32_bits_are_reached(cuda: str) -> None:
    if torch.cuda.get_device_properties(0).total_memory < 32 << 30:
        pytest.skip("needs 32 GiB of GPU memory")
    # 2³¹ elements lie before the first page in use.
    pages_before = 2**31 // (8 * 16 * 128)
    case = AttentionCase(
        num_heads=32, num_kv_heads=8, head_size=128, pages_before=pages_before, rows=((1, 63), (1, 1000), (63, 100))
    )
    checks.check_attention(paged_attention.paged_attention, case, torch.bfloat16, cuda)


def test_attention_is_captured_in_a_graph_and_replayed_with_other_lengths(cuda: str) -> None:
    case = AttentionCase(num_heads=32, num_kv_heads=8, head_size=128, rows=((1, 1000), (1, 500), (1, 17), (1, 63)))
    inputs = checks.attention_inputs(case, torch.bfloat16, cuda)
    q_THD, lens_S = inputs.arguments[0], inputs.arguments[5]

    def attend() -> torch.Tensor:
        return paged_attention.paged_attention(*inputs.arguments, scale=0.1, max_query_len=1)

    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_THD = attend()
    for shorter in (0, 10):
        lens_S -= shorter
        out_THD.fill_(float("nan"))
        graph.replay()
        for row, context in enumerate(lens_S.tolist()):
            k, v = inputs.keys[row][:context], inputs.values[row][:context]
            exact = checks.dense_attention(q_THD[row : row + 1], k, v, 0.1, None)
            checks.assert_close(out_THD[row : row + 1], exact, f"row {row}, {context} keys")
