"""The benchmarks that need SmolLM2, or its tokenizer, at sizes that show nothing but that they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2")]


def summary_of(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON line that ends what it prints."""
    command = [sys.executable, f"bench/{script}.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


def test_the_whole_service_does_the_work_that_the_engine_does_alone() -> None:
    summary = summary_of("whole", "--model", "tiny", "--device", "cpu", "--num-requests", "4", "--workload", "prefix")
    (result,) = summary["results"]
    assert result["share"] == pytest.approx(result["alone_s"] / result["service_s"], rel=1e-3)


def test_answers_with_and_without_an_8_bit_cache_are_compared() -> None:
    summary = summary_of("kv_cache", "--num-prompts", "3", "--num-tokens", "4", "--device", "cpu")
    assert 0 <= summary["same_answers"] <= summary["answers"] == 3
    assert 0 < summary["mean_logprob_difference"] < 1


def test_a_batch_beside_requests_runs_through_the_service_with_a_stand_in_for_the_engine() -> None:
    few = ("--num-requests", "40", "--prompt-tokens", "8", "--output-tokens", "3", "--idle-seconds", "1")
    summary = summary_of("mixed", "--model", "llama-3.1-8b", "--stand-in", "--rate", "20", *few)
    for row in (summary["runs"][0], summary["runs"][2]):
        phases = {phase["phase"]: phase["p50_ms"] for phase in row["phases"]}
        way = ["http", "api", "redis", "prompt", "sending", "inbox", "engine", "return", "text"]
        assert list(phases) == way
        assert all(milliseconds >= 0 for milliseconds in phases.values())
        assert phases["engine"] < row["ttft_p50_ms"]
