"""Where a model's name leads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pressrun.cli.model import ensure_model
from pressrun.jobs.errors import SettingsError

Pressrun = Callable[..., "CompletedProcess[str]"]


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert ensure_model(str(tmp_path), tmp_path / "data") == tmp_path
    assert not (tmp_path / "data").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no config\.json"):
        ensure_model(str(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "./no/such", "a/b/c", "../no-such"])
def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="no such folder, and neither"):
        ensure_model(name, tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_clear_error(
    pressrun: Pressrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    result = pressrun("model", "--model", "org/name", data_dir=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "pressrun: model 'org/name' could not be fetched from the Hugging Face hub: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.model
def test_processes_that_want_the_model_at_once_fetch_it_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pressrun.cli.model import SMOLLM2, ensure_model\n"
        "print(ensure_model(SMOLLM2.upper(), Path(sys.argv[1]), print))"
    )
    (tmp_path / "models" / ".converting-left-by-a-kill").mkdir(parents=True)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = "".join(process.communicate()[0] for process in processes)
    folder = tmp_path / "models" / "SmolLM2-135M-Instruct"
    assert said.count(f"{folder}\n") == 2
    assert said.count("Fetching") == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "SmolLM2-135M-Instruct"]
