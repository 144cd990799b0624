"""Settings from the environment: complete, checked, and nothing overlooked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pressrun.jobs.errors import SettingsError
from pressrun.jobs.settings import Settings, load_settings


def test_the_environment_is_read_and_typed() -> None:
    environ = {"PRESSRUN_PORT": "9000", "PRESSRUN_LEASE_S": "1.5", "PRESSRUN_ENABLE_PREFIX_CACHING": "false"}
    settings = load_settings(environ | {"HOME": "/x", "PORT": "1"})
    assert (settings.port, settings.lease_s, settings.enable_prefix_caching) == (9000, 1.5, False)


def test_an_unknown_name_is_refused_and_the_nearest_known_one_is_told() -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_SHARD_LINE; did you mean PRESSRUN_SHARD_LINES"):
        load_settings({"PRESSRUN_SHARD_LINE": "3"})
    with pytest.raises(SettingsError, match=r"unknown setting PRESSRUN_XXXXXXXXXXXXXXXXXXXXXXX$"):
        load_settings({"PRESSRUN_XXXXXXXXXXXXXXXXXXXXXXX": "3"})


def test_what_tests_need_is_no_setting() -> None:
    assert load_settings({"PRESSRUN_TEST_DATA": "/x"}).port == 8000


def test_an_empty_variable_is_an_unset_one() -> None:
    settings = load_settings({"PRESSRUN_PORT": "", "PRESSRUN_REDIS_URL": ""})
    assert (settings.port, settings.redis_url) == (8000, None)


def test_overrides_win_and_none_is_no_override() -> None:
    settings = load_settings({"PRESSRUN_PORT": "9000", "PRESSRUN_HOST": "::1"}, port=7000, host=None)
    assert (settings.port, settings.host) == (7000, "::1")


def test_only_the_given_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSRUN_PORT", "9000")
    assert load_settings({}).port == 8000
    assert load_settings().port == 9000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "x"),
        ("SHARD_LINES", "0"),
        ("LEASE_S", "0.5"),
        ("COMMIT_INTERVAL_S", "0"),
        ("ENGINE", "vllm"),
        ("GPU_MEMORY_UTILIZATION", "1.1"),
        ("ENABLE_PREFIX_CACHING", "perhaps"),
    ],
)
def test_a_bad_value_is_named_with_what_is_wrong(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"PRESSRUN_{name}='{value}': "):
        load_settings({f"PRESSRUN_{name}": value})


def test_an_override_that_is_no_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_FEED"):
        load_settings({}, feed=1)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings({}).port = 1


@pytest.mark.parametrize(
    "changes", [{}, {"redis_url": "redis://x:1/2", "lease_s": 3, "enable_prefix_caching": False, "max_model_len": 77}]
)
def test_a_child_process_gets_the_same_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=tmp_path, **changes)
    assert load_settings(settings.environment()) == settings


def test_the_data_folder_is_absolute_and_blobs_lie_in_it() -> None:
    settings = load_settings({"PRESSRUN_DATA_DIR": "~/a b"})
    assert settings.data_dir == Path.home() / "a b"
    assert settings.blobs == f"file://{Path.home()}/a%20b/blobs"
    assert load_settings({}, data_dir="here").data_dir == Path.cwd() / "here"
    assert load_settings({"PRESSRUN_BLOB_URL": "redis:"}).blobs == "redis:"


@pytest.mark.parametrize(
    ("model", "served", "name"),
    [
        ("smollm2-135m-instruct", None, "smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M", None, "SmolLM2-135M"),
        ("/models/mine/", None, "mine"),
        ("/models/mine", "org/other", "org/other"),
    ],
)
def test_clients_name_the_model_by_its_last_part_unless_told_otherwise(
    model: str, served: str | None, name: str
) -> None:
    assert load_settings({}, model=model, served_model_name=served).model_name == name


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
