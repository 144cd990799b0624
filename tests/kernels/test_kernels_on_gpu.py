"""The Triton kernels on a GPU at the shapes of real models, against the same plain formulas as the references."""

import pytest
import torch
import triton

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
    triton_attention_tiling,
    triton_noise,
    triton_paged_attention,
    triton_prefills,
)
from pressrun.kernels.checks import AttentionCase, RotateCase
from pressrun.kernels.compiling import compiling
from pressrun.kernels.sample import SamplingRows

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# Query heads, kv heads, head size: Llama 3, SmolLM2, Qwen2.5-7B, one kv head, Phi-2's head, Phi-3's, Gemma's.
SHAPES = [(32, 8, 128), (9, 3, 64), (28, 4, 128), (8, 1, 128), (32, 32, 80), (32, 32, 96), (16, 16, 256)]

MIXED_ROWS = (
    *((1, 1 + 37 * i) for i in range(40)),
    *((0, 64), (2, 2), (3, 1000), (63, 63), (63, 1000), (129, 130), (600, 2000), (1, 4096), (1000, 1000)),
)


def test_what_is_compiled_ahead_is_neither_launched_nor_compiled_again(cuda: str) -> None:
    logits_SV = torch.randn(3, 777, device=cuda)
    rows_S = torch.arange(3, dtype=torch.int32, device=cuda)
    params = SamplingRows(
        temperature_R=torch.zeros(3, device=cuda),
        top_p_R=torch.ones(3, device=cuda),
        min_p_R=torch.zeros(3, device=cuda),
        top_k_R=torch.zeros(3, dtype=torch.int32, device=cuda),
        seed_R2=torch.zeros(3, 2, dtype=torch.int32, device=cuda),
    )
    out_S = torch.full((3,), -7, device=cuda)
    compiled: list[object] = []
    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = lambda **what: compiled.append(what["src"])
    try:
        with compiling(torch.device(cuda)):
            for _ in range(3):
                sample.sample(logits_SV, rows_S, rows_S, params, out_S=out_S)
        assert out_S.tolist() == [-7, -7, -7]
        assert len(compiled) == 1
        sample.sample(logits_SV, rows_S, rows_S, params, out_S=out_S)
        assert torch.equal(out_S, logits_SV.argmax(-1))
        assert len(compiled) == 1
    finally:
        triton.knobs.compilation.listener = before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 576), (63, 1000), (2048, 4096), (1000, 128), (63, 8192)])
def test_norms_match_the_formula(num_tokens: int, size: int, dtype: torch.dtype, cuda: str) -> None:
    checks.check_rms_norm(rms_norm.rms_norm, num_tokens, size, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1536), (63, 1000), (2048, 14336)])
def test_activation_matches_the_formula(num_tokens: int, size: int, dtype: torch.dtype, cuda: str) -> None:
    checks.check_silu_mul(silu_mul.silu_mul, num_tokens, size, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 127, 128, 1000, 2049])
@pytest.mark.parametrize(
    ("num_features", "num_inputs"),
    [
        (1536, 576),  # SmolLM2
        (14336, 4096),  # Llama 3
        (1000, 1000),  # no whole tiles
        (63, 100),  # rows that are no whole 16 bytes
    ],
)
def test_gated_layers_match_the_formula(
    num_features: int, num_inputs: int, num_tokens: int, dtype: torch.dtype, cuda: str
) -> None:
    checks.check_gated_product(gated_product.gated_product, num_tokens, num_features, num_inputs, dtype, cuda)


@pytest.mark.parametrize("num_tokens", [130, 256])
@pytest.mark.parametrize(("num_features", "num_inputs"), [(8504, 2056), (9608, 2048), (10888, 4104)])
def test_gated_layers_whose_last_tiles_are_shared_match_the_formula(
    num_features: int, num_inputs: int, num_tokens: int, cuda: str
) -> None:
    """On 132 multiprocessors by eight, four and two programs; again and again, because they count each other."""
    for _ in range(3):
        checks.check_gated_product(
            gated_product.gated_product, num_tokens, num_features, num_inputs, torch.bfloat16, cuda
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pages_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "pairs", "page_size"),
    [
        (32, 8, 128, 64, 16),  # Llama 3
        (9, 3, 64, 32, 16),  # SmolLM2
        (32, 32, 80, 16, 48),  # Phi-2
        (28, 4, 96, 48, 16),
        (16, 4, 256, 128, 64),
    ],
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
    cuda: str,
) -> None:
    if pages_dtype is not None and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 before compute capability 8.9")
    for num_tokens in (1, 63, 1000):
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
        checks.check_rotate_and_write(rotate_and_write.rotate_and_write, case, dtype, cuda)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 50, 1000])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), SHAPES)
def test_attention_of_mixed_rows_matches_dense_attention(
    heads: int, kv_heads: int, head_size: int, window: int | None, dtype: torch.dtype, cuda: str
) -> None:
    case = AttentionCase(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        window=window,
        rows=MIXED_ROWS,
        scattered=window is None,
    )
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


# Rows 0 to 74 share 256 keys and two groups of them more; row 75 is alone in its group; rows 78 on share nothing.
SHARED_LEVELS = (
    ((0, 75, 0, 256), (75, 76, 0, 512), (76, 78, 0, 64)),
    ((0, 21, 256, 640), (40, 75, 256, 320)),
)
SHARED_ROWS = (*((0 if i % 20 == 3 else 1, 641 + 13 * i % 300) for i in range(80)), (40, 500), (1, 9))


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("parts", [{"num_splits": 1, "num_shared_parts": 1}, {"num_splits": 3, "num_shared_parts": 2}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(32, 8, 128), (9, 3, 64), (32, 32, 96)])
def test_rows_that_share_prefixes_match_dense_attention(
    heads: int, kv_heads: int, head_size: int, dtype: torch.dtype, parts: dict[str, int], page_size: int, cuda: str
) -> None:
    case = AttentionCase(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        page_size=page_size,
        rows=SHARED_ROWS,
        levels=SHARED_LEVELS,
        scattered=True,
    )
    checks.check_attention(triton_paged_attention.paged_attention, case, dtype, cuda, **parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("levels", [(), SHARED_LEVELS])
def test_attention_over_8_bit_pages_is_that_over_their_rounded_values(
    levels: tuple[tuple[tuple[int, int, int, int], ...], ...], page_size: int, dtype: torch.dtype, cuda: str
) -> None:
    case = AttentionCase(
        num_heads=32,
        num_kv_heads=8,
        head_size=128,
        page_size=page_size,
        rows=SHARED_ROWS if levels else MIXED_ROWS,
        levels=levels,
        pages_dtype=torch.float8_e4m3fn,
    )
    checks.check_attention(paged_attention.paged_attention, case, dtype, cuda)


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


@pytest.mark.parametrize("lengths", [[1], [0, 2, 0], [1, 7] * 20, [1] * 1030 + [9, 1, 300], [2] * 2048])
def test_prefills_are_the_rows_of_more_than_one_query(lengths: list[int], cuda: str) -> None:
    checks.check_prefills(triton_prefills.find_prefills, lengths, cuda)


@pytest.mark.parametrize("tokens_a_row", [0, 1 << 30])
def test_prefills_have_a_program_for_each_tile_or_share_some(
    tokens_a_row: int, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_attention_tiling, "PREFILL_TOKENS_A_ROW", tokens_a_row)
    rows = (*((3 + 61 * i % 400, 400 + i) for i in range(60)), (1, 900), (0, 5), (700, 2000))
    case = AttentionCase(num_heads=32, num_kv_heads=8, head_size=128, page_size=64, rows=rows)
    checks.check_attention(paged_attention.paged_attention, case, torch.bfloat16, cuda)


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("lengths", [[1], [1] * 40, [3, 1, 300, 17, 1], [2000, 1, 256]])
def test_a_steps_inputs_follow_from_its_plan(lengths: list[int], padding: int, cuda: str) -> None:
    checks.check_step_inputs(step_inputs.step_inputs, lengths, 16, padding, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_draws", "vocab_size"), [(500, 63), (500, 1000), (200, 49152), (200, 151936), (60, 262144)]
)
def test_draws_match_the_textbook_and_depend_on_nothing_beside_them(
    num_draws: int, vocab_size: int, dtype: torch.dtype, cuda: str
) -> None:
    sampling_checks.check_sample(sample.sample, num_draws, vocab_size, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_draws", "vocab_size", "counts"),
    [(500, 63, torch.int32), (500, 1000, torch.int16), (100, 49152, torch.int16), (60, 151936, torch.int32)],
)
def test_draws_with_penalties_are_those_from_changed_logits_and_are_noted(
    num_draws: int, vocab_size: int, counts: torch.dtype, dtype: torch.dtype, cuda: str
) -> None:
    penalty_checks.check_penalties(sample.sample, num_draws, vocab_size, dtype, cuda, counts)


def test_penalties_take_no_copy_of_the_logits(cuda: str) -> None:
    num_rows, vocab_size = 256, 128256
    logits_SV = torch.randn(num_rows, vocab_size, dtype=torch.bfloat16, device=cuda)
    rows_S = torch.arange(num_rows, dtype=torch.int32, device=cuda)
    histories = [penalty_checks.History([row], [row]) for row in range(num_rows)]
    penalties = penalty_checks.penalty_rows(histories, vocab_size, cuda, torch.int16)
    params = sampling_checks.mixed_parameters(num_rows, cuda)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sample.sample(logits_SV, rows_S, rows_S, params, penalties=penalties)
    assert torch.cuda.max_memory_allocated() - before < logits_SV.nbytes / 8


def test_draws_with_penalties_are_captured_in_a_graph_and_noted_by_each_replay(cuda: str) -> None:
    logits_1V = torch.zeros(1, 1000, dtype=torch.bfloat16, device=cuda)
    row_1 = torch.ones(1, dtype=torch.int32, device=cuda)
    params = sampling_checks.mixed_parameters(2, cuda)
    params.temperature_R[:] = 0
    # Row 3's strengths are those of a presence penalty: of equal logits the first that was not drawn is drawn.
    histories = [penalty_checks.History([], []) for _ in range(4)]
    penalties = penalty_checks.penalty_rows(histories, 1000, cuda, torch.int16)
    penalties.strengths_R3[1] = penalties.strengths_R3[3]
    sample.sample(logits_1V, row_1, row_1, params, penalties=penalties)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens_1 = sample.sample(logits_1V, row_1, row_1, params, penalties=penalties)
    drawn = []
    for _ in range(40):
        graph.replay()
        drawn.append(int(tokens_1[0]))
    assert drawn == list(range(1, 41))


def test_tokens_are_drawn_as_often_as_they_are_likely(cuda: str) -> None:
    sampling_checks.check_frequencies(sample.sample, 20000, cuda)


def test_noise_is_bit_for_bit_that_of_the_reference(cuda: str) -> None:
    sampling_checks.check_noise_words(triton_noise.noise_words, cuda)
