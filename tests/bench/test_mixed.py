"""bench/mixed.py on a tiny model, on the CPU: the engine's process alone. The whole service is the same table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def mixed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/mixed.py", "--model", "tiny", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_requests_are_asked_alone_and_beside_the_batch_and_all_are_answered() -> None:
    few = ("--prompt-tokens", "8", "--output-tokens", "3", "--idle-seconds", "1", "--rate", "20")
    result = mixed("--engine", "--num-requests", "16", *few, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    alone, batch, both = summary["runs"]
    assert summary["level"] == "engine"
    for row in (alone, both):
        assert row["requests"] > 0
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"] <= row["ttft_max_ms"]
        assert row["gap_max_ms"] > 0
        assert [phase["phase"] for phase in row["phases"]] == ["inbox", "engine", "return"]
        assert all(phase["max_ms"] <= row["ttft_max_ms"] for phase in row["phases"])
    assert summary["batch_throughput_share"] == batch["batch_s"] / both["batch_s"]


def test_what_the_service_has_no_setting_for_is_refused() -> None:
    result = mixed("--no-interludes")
    assert result.returncode == 2
    assert "--no-interludes is no setting of the service: it needs --engine" in result.stderr
