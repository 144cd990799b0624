"""What every engine is measured on is the same everywhere, and its limits are those of its bytes and operations."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from pressrun.bench.ceilings import Ceilings
from pressrun.bench.limits import Limits, limits_of, sizes_of
from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.workloads import WORKLOADS, make_workload

# Vocabularies above 100,000 tokens draw the same.
VOCABULARY = 128256
TOTALS = {  # requests, tokens in, tokens out, first digits of the checksum
    "uniform": (1024, 524_288, 262_144, "49c73fd953870387"),
    "sharegpt": (2000, 404_356, 394_223, "f9894fd1f26d1620"),
    "prefix": (1024, 1_179_648, 131_072, "3470355901263232"),
    "prefixes": (1024, 1_179_648, 131_072, "3c4c808f6d29c184"),
    "shuffled": (1024, 1_179_648, 131_072, "19619e81263f0dd2"),
    "documents": (1024, 1_179_648, 131_072, "771c2d32a24d5273"),
    "scattered": (1024, 1_179_648, 131_072, "24bb7fe81558b2c9"),
    "prefill": (512, 1_048_576, 4_096, "d9f56dc982ec9f76"),
    "mixed": (256, 147_405, 140_670, "11ff4179d9809804"),
}
H100 = Ceilings(
    device="cuda",
    device_name="H100",
    copy_gbps=3000,
    product_tflops=700,
    attention_tflops=450,
    memory_bytes=85.5e9,
)


def limits(model: str, workload: str) -> Limits | None:
    shape = SHAPES[model]
    return limits_of(sizes_of(shape, 2, 2), make_workload(workload, shape["vocab_size"]), H100)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_never_changes(name: str) -> None:
    workload = make_workload(name, VOCABULARY)
    assert (len(workload.items), workload.num_input, workload.num_output, workload.checksum[:16]) == TOTALS[name]


@pytest.mark.parametrize("name", ["uniform", "sharegpt", "prefix", "prefill", "mixed"])
def test_fewer_requests_are_the_first_of_all(name: str) -> None:
    assert make_workload(name, VOCABULARY, 3).items == make_workload(name, VOCABULARY, 9).items[:3]


def test_beginnings_lie_together_or_in_random_order() -> None:
    together, shuffled = make_workload("prefixes", VOCABULARY, 64), make_workload("shuffled", VOCABULARY, 64)
    heads = [[tuple(item.prompt[:1024]) for item in workload.items] for workload in (together, shuffled)]
    assert together.num_heads == shuffled.num_heads == len(set(heads[0])) == 16
    assert [len(list(group)) for _, group in groupby(heads[0])] == [4] * 16
    assert len(list(groupby(heads[1]))) > 50
    assert sorted(item.prompt for item in together.items) == sorted(item.prompt for item in shuffled.items)


@pytest.mark.parametrize(
    ("model", "workload", "sequential", "overlap"),
    [
        ("llama-3.1-8b", "uniform", 23.6, 16.2),
        ("llama-3.1-8b", "sharegpt", 23.6, 16.6),
        ("llama-3.1-8b", "prefill", 22.6, 22.2),
        ("qwen3-0.6b", "mixed", 5.4, 5.3),
        ("qwen3-0.6b", "uniform", 7.6, 6.5),
        ("llama-3.1-8b-awq", "sharegpt", 23.6, 16.6),
        ("llama-3-70b-awq", "sharegpt", 175.5, 157.9),
        ("qwen3-30b-a3b", "uniform", 29.3, 29.0),
    ],
)
def test_limits_on_an_h100(model: str, workload: str, sequential: float, overlap: float) -> None:
    found = limits(model, workload)
    assert found is not None
    assert (found.sequential, found.overlap) == (pytest.approx(sequential, abs=0.05), pytest.approx(overlap, abs=0.05))
    assert found.shared_once is None


def test_a_shared_beginning_that_is_read_once_a_step_costs_next_to_nothing() -> None:
    found = limits("llama-3.1-8b", "prefix")
    assert found is not None
    assert (round(found.sequential, 1), round(found.shared_once or 0, 1)) == (12.6, 6.7)


def test_weights_that_leave_no_room_have_no_limits() -> None:
    wide = sizes_of(SHAPES["llama-3-70b-awq"] | {"quantization_config": None}, 2, 2)
    assert limits_of(wide, make_workload("mixed", VOCABULARY), H100) is None


def test_a_shape_is_written_as_it_is(tmp_path: Path) -> None:
    for name, shape in SHAPES.items():
        assert json.loads((write_shape(name, tmp_path) / "config.json").read_text()) == shape
