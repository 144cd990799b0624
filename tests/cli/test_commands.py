"""What the `pressrun` command says: help, versions, and errors of those who call it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pressrun import __version__
from pressrun.cli.flags import API_FIELDS, EVERYWHERE, MODEL_FIELDS
from pressrun.jobs.settings import Settings

Pressrun = Callable[..., "CompletedProcess[str]"]


def test_help_names_the_commands_and_is_quick(pressrun: Pressrun) -> None:
    began = time.monotonic()
    result = pressrun("--help")
    assert result.returncode == 0
    assert time.monotonic() - began < 5  # half a second on an idle machine
    for command in ("up", "api", "worker", "model", "demo"):
        assert f" {command} " in result.stdout


def test_the_version_is_that_of_the_package(pressrun: Pressrun) -> None:
    assert pressrun("--version").stdout == f"pressrun {__version__}\n"


def test_every_setting_is_a_flag_of_up(pressrun: Pressrun) -> None:
    text = pressrun("up", "--help").stdout
    assert set(Settings.model_fields) == {*EVERYWHERE, *API_FIELDS, *MODEL_FIELDS}
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_a_flag_that_a_command_would_not_use_is_refused(pressrun: Pressrun) -> None:
    assert "No such option: --max-num-seqs" in pressrun("api", "--max-num-seqs", "3").stderr
    assert "No such option: --port" in pressrun("worker", "--port", "3").stderr


@pytest.mark.parametrize("command", ["up", "api", "worker", "demo", "model"])
def test_an_unknown_setting_is_refused_with_the_nearest_name(pressrun: Pressrun, command: str) -> None:
    result = pressrun(command, max_num_seq=3)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("pressrun: unknown setting PRESSRUN_MAX_NUM_SEQ; did you mean PRESSRUN_MAX_NUM_SEQS?\n")


def test_a_flag_goes_over_the_environment_and_is_checked(pressrun: Pressrun) -> None:
    result = pressrun("api", "--port", "99999", port=8001)
    assert result.returncode == 2
    assert result.stderr.startswith("pressrun: PRESSRUN_PORT='99999': Input should be less than or equal to 65535")


@pytest.mark.parametrize("command", ["api", "worker"])
def test_what_needs_a_redis_says_so(pressrun: Pressrun, command: str, tmp_path: Path) -> None:
    result = pressrun(command, data_dir=tmp_path)
    assert result.returncode == 2
    assert "PRESSRUN_REDIS_URL is not set; `pressrun up` runs a Valkey of its own" in result.stderr
