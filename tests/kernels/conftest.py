"""Fixtures of the kernel tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_draw() -> None:
    """Every test draws the same inputs on every run."""
    torch.manual_seed(20)


@pytest.fixture
def cuda() -> str:
    """The device of tests that need a GPU; they are skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    return "cuda"
