"""bench/throughput.py on a tiny model, on the CPU: the same road as on a GPU, beside transformers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pressrun.bench.children import complete_lines
from pressrun.bench.options import engine_kinds, parse
from pressrun.bench.profiling import Span, by_name, idle_share
from pressrun.engine.config import EngineConfig

ROOT = Path(__file__).parent.parent.parent


def throughput(*arguments: str) -> tuple[int, str, dict[str, Any]]:
    """The exit code, what is printed for people, and the JSON line that ends it."""
    command = [sys.executable, "bench/throughput.py", "--model", "tiny", *arguments, "--device", "cpu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    *lines, last = result.stdout.splitlines() or [""]
    assert last.startswith("{"), result.stdout + result.stderr
    return result.returncode, "\n".join(lines), json.loads(last)


def test_every_engine_that_is_there_does_the_same_work_and_is_compared() -> None:
    code, text, summary = throughput("--workload", "prefix,prefill", "--num-requests", "3", "--profile")
    assert (code, summary["errors"]) == (0, {})
    ours = [result for result in summary["results"] if result["engine"] == "pressrun"]
    assert [result["workload"] for result in ours] == ["prefix", "prefill"]
    theirs = [result for result in summary["results"] if result["engine"] == "transformers"]
    for one, other in zip(ours, theirs, strict=True):
        assert (one["input_tokens"], one["output_tokens"]) == (other["input_tokens"], other["output_tokens"])
        assert one["ratio"]["transformers"] == pytest.approx(other["seconds"] / one["seconds"], rel=1e-3)
        sequential = summary["limits"][one["workload"]]["sequential"]
        assert one["share_of_sequential_limit"] == pytest.approx(sequential / one["seconds"], rel=1e-3)
        assert one["startup_s"] > 0
        assert one["num_steps"] >= one["output_tokens"] / 3
    # Two of three prompts find the shared 1024 tokens of the first, and none what a warm-up left.
    assert [result["cached_tokens"] for result in ours] == [2 * 1024, 0]
    assert "× transformers" in text
    assert summary["profiles"]["prefill"]["kernels"][0]["total_ms"] > 0
    if "vllm" in summary["not_installed"]:
        assert "vllm: not installed, left out" in text


def test_an_engine_that_fails_is_named_and_the_others_go_on() -> None:
    code, text, summary = throughput(
        "--workload", "prefill", "--num-requests", "2", "--num-pages", "8", "--engines", "pressrun,transformers"
    )
    assert code == 1
    assert "exceed the KV cache of" in summary["errors"]["pressrun"]
    assert "pressrun failed: RuntimeError: request 0" in text
    assert [result["engine"] for result in summary["results"]] == ["transformers"]


def test_every_field_of_the_engine_is_a_flag() -> None:
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert engine_kinds().keys() == fields - {"model", "load_format"}
    _, flags = parse("", ["--model", "tiny", "--max-num-seqs", "7", "--enforce-eager", "--kv-cache-gb", "0.5"])
    assert flags == {"max_num_seqs": 7, "enforce_eager": True, "kv_cache_gb": 0.5}
    assert parse("", ["--model", "tiny"])[1] == {}


@pytest.mark.parametrize(
    "arguments",
    ["--model nothing", "--model tiny --workload none", "--model tiny --engines none", "--model tiny --repeat 0"],
)
def test_what_cannot_be_measured_is_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("", arguments.split())
    assert "error: " in capsys.readouterr().err


def test_idle_is_what_no_kernel_of_any_stream_covers() -> None:
    spans = [Span("a", 0, 10), Span("b", 5, 12), Span("a", 6, 8), Span("a", 16, 20)]
    assert idle_share(spans) == pytest.approx(4 / 20)
    assert idle_share([]) is None
    kernels = [(kernel["name"], kernel["calls"], kernel["total_ms"]) for kernel in by_name(spans)]
    assert kernels == [("a", 3, pytest.approx(0.016)), ("b", 1, pytest.approx(0.007))]
    assert sum(kernel["share"] for kernel in by_name(spans)) == pytest.approx(1)


def test_a_line_that_is_being_written_is_waited_for() -> None:
    pieces = iter(["one\ntw", "o\n", ""])
    ended = iter([False, False, True])
    assert list(complete_lines(lambda: next(pieces), lambda: next(ended), lambda: None)) == ["one", "two"]
