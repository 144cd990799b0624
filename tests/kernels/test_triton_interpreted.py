"""The Triton kernels in Triton's interpreter, against the same plain formulas as the references."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

# It looks at every kernel in one go, on a busy machine for minutes.
pytestmark = pytest.mark.timeout(300)
PROGRAM = Path(__file__).with_name("interpreted_kernels.py")


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str | None]:
    triton = pytest.importorskip("triton", reason="triton has no build for this platform")
    if _release(triton.__version__) < (3, 7) and _release(numpy.__version__) >= (2, 4):
        pytest.skip("before 3.7, Triton's interpreter cannot loop over a range of tensors with NumPy 2.4 and later")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, str | None] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "kernel",
    ["rms_norm", "silu_mul", "gated_product", "rotate_and_write", "sample", "step_inputs", "prefills", "attention"],
)
def test_interpreted_kernel_matches_the_formula(kernel: str, outcomes: dict[str, str | None]) -> None:
    of_kernel = {name: error for name, error in outcomes.items() if name.startswith(kernel)}
    assert of_kernel
    wrong = {name: error for name, error in of_kernel.items() if error is not None}
    assert not wrong, "\n\n".join(f"{name}:\n{error}" for name, error in wrong.items())
