"""`pressrun demo` with the stand-in engine: the same road, quickly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

Pressrun = Callable[..., "CompletedProcess[str]"]
LeftIn = Callable[[Path], list[psutil.Process]]


@pytest.fixture
def data(folder: Path, smollm2: Path, humaneval: list[str], mtbench: list[str], test_data: Path) -> Path:
    """A data folder that has the model and the prompts already."""
    for name in ("models", "prompts"):
        (folder / name).symlink_to(test_data / name)
    return folder


def test_the_demo_answers_real_prompts_and_shows_them(pressrun: Pressrun, data: Path, left_in: LeftIn) -> None:
    result = pressrun("demo", "--engine", "echo", data_dir=data)
    assert result.returncode == 0, result.stdout + result.stderr
    (output,) = (data / "demo").glob("batch_*.jsonl")
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(answers) == 48
    assert [answer["custom_id"] for answer in answers[:4]] == ["humaneval-0", "mtbench-81", "humaneval-1", "mtbench-82"]
    assert "48 of 48 lines answered" in result.stdout
    assert f"The output file: {output}" in result.stdout
    assert "Compose an engaging travel blog post" in result.stdout
    assert sorted(path.name for path in (data / "demo").iterdir()) == sorted([output.name, "up.log"])
    assert left_in(data) == []


def interrupted_demo(environment: dict[str, str], log: Path) -> tuple[int, str]:
    """The exit code of a demo that is interrupted as soon as its service runs, and what it said."""
    log.unlink(missing_ok=True)
    demo = subprocess.Popen(
        [sys.executable, "-m", "pressrun.cli", "demo", "--engine", "echo"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(demo.pid, signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    return demo.returncode, said


def test_an_interrupted_demo_stops_what_it_started(data: Path, environment: Callable[..., Any]) -> None:
    log = data / "demo" / "up.log"
    for _ in range(3):
        status, said = interrupted_demo(environment(data_dir=data), log)
        if status:
            break  # Else all was answered before it was interrupted: the machine had other things to do.
    assert status == 130
    assert "Interrupted; everything is stopped." in said
    assert [path.name for path in log.parent.iterdir()] == ["up.log"]
    assert log.read_text().rstrip().endswith("pressrun.up: stopped")


def test_a_demo_that_cannot_start_shows_why(pressrun: Pressrun, data: Path) -> None:
    (data / "model").mkdir()
    (data / "model" / "config.json").write_text("nonsense")
    result = pressrun("demo", "--model", data / "model", data_dir=data)
    assert result.returncode == 1
    assert "pressrun up ended with exit code 1" in result.stderr
    assert "Traceback" not in result.stderr.split("pressrun up ended")[0]
