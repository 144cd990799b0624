"""bench/penalties.py on a tiny model, on the CPU: that it does the work that it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_same_work_is_done_with_and_without_penalties() -> None:
    command = [sys.executable, "bench/penalties.py", "--model", "tiny", "--workload", "prefill", "--num-requests", "2"]
    command += ["--repeat", "1", "--device", "cpu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    kinds = json.loads(result.stdout.splitlines()[-1])["kinds"]
    assert list(kinds) == ["free", "repetition", "all"]
    for kind in kinds.values():
        assert kind["ratio"] == pytest.approx(kind["tokens_per_s"] / kinds["free"]["tokens_per_s"], abs=2e-3)
