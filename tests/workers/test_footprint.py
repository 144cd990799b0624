"""What a worker's processes need not load: each of these takes megabytes, once for every process of every worker."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("pressrun.workers.worker", {"numpy", "torch", "llguidance"}),
        ("pressrun.workers.echo_engine", {"pydantic", "redis", "numpy"}),
        ("pressrun.workers.engine_child", {"pydantic", "redis", "numpy"}),
    ],
)
def test_a_process_of_a_worker_loads_nothing_large_that_it_does_not_use(module: str, unneeded: set[str]) -> None:
    code = f"import sys, {module}; print(*{unneeded!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
