"""bench/structured.py on a tiny model, on the CPU: that it does the work that it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_same_work_is_done_with_and_without_a_schema() -> None:
    command = [sys.executable, "bench/structured.py", "--model", "tiny", "--workload", "prefill", "--num-requests", "2"]
    command += ["--repeat", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    rates = summary["shaped_tokens_per_s"] / summary["free_tokens_per_s"]  # Which are rounded.
    assert summary["ratio"] == pytest.approx(rates, rel=0.03)
    assert 0 < summary["mask_ms_per_step"] < summary["step_ms"]
