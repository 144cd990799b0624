"""`pressrun keys` and `pressrun tenants`, on a service that runs and on a data folder where nothing does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

Pressrun = Callable[..., "CompletedProcess[str]"]
StartUp = Callable[..., Any]


def test_a_key_is_printed_once_listed_without_itself_and_revoked(pressrun: Pressrun, folder: Path) -> None:
    made = pressrun("keys", "create", "--tenant", "acme", "--name", "ci", "--expires", "90d", data_dir=folder)
    secret = made.stdout.strip()
    assert re.fullmatch(r"sk-pressrun-[\w-]{43}", secret)
    (key_id,) = re.findall(r"key_[0-9a-f]{16}", made.stderr)
    listed = pressrun("keys", "list", data_dir=folder).stdout
    assert re.search(rf"{key_id}  acme    ci    {secret[:20]}…  .*  good$", listed, re.MULTILINE)
    assert secret not in listed
    assert pressrun("keys", "revoke", key_id, data_dir=folder).stdout == f"{key_id} of tenant acme is revoked\n"
    assert re.search(rf"{key_id} .* revoked$", pressrun("keys", "list", data_dir=folder).stdout, re.MULTILINE)


def test_limits_are_set_and_listed_with_what_is_held(pressrun: Pressrun, folder: Path) -> None:
    limits = ("--weight", "2.5", "--max-enqueued-tokens", "1000", "--requests-per-minute", "60")
    assert pressrun("tenants", "set", "acme", *limits, data_dir=folder).returncode == 0
    pressrun("tenants", "set", "acme", "--max-active-batches", "3", "--requests-per-minute", "none", data_dir=folder)
    pressrun("keys", "create", "--tenant", "other", data_dir=folder)
    head, acme, other = pressrun("tenants", "list", data_dir=folder).stdout.splitlines()
    columns = re.compile(r"\s{2,}")
    assert columns.split(head)[:3] == ["tenant", "weight", "tokens enqueued"]
    assert columns.split(acme) == ["acme", "2.5", "0 of 1000", "0 of 3", "0", "–"]
    assert columns.split(other) == ["other", "1", "0", "0", "0", "–"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("keys", "create", "--tenant", "A B"), "'A B' cannot be a tenant's name"),
        (("keys", "create", "--expires", "soon"), "--expires soon: expected a duration"),
        (("keys", "revoke", "key_x"), "No API key has the id 'key_x'"),
        (("tenants", "set", "acme"), "Nothing to set"),
        (("tenants", "set", "acme", "--weight", "heavy"), "--weight heavy: expected a number"),
        (("tenants", "set", "acme", "--max-active-batches", "0"), "max_active_batches is at least 1"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    pressrun: Pressrun, folder: Path, words: tuple[str, ...], error: str
) -> None:
    result = pressrun(*words, data_dir=folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"pressrun: {error}")


def test_a_redis_that_does_not_answer_is_one_clear_error(pressrun: Pressrun, folder: Path, free_port: int) -> None:
    result = pressrun("keys", "list", data_dir=folder, redis_url=f"redis://127.0.0.1:{free_port}/0")
    assert result.returncode == 1
    assert result.stderr.startswith("pressrun: Redis does not answer: ")
    assert "Traceback" not in result.stderr


def test_a_key_made_beside_a_running_service_shuts_its_door_at_once(
    start_up: StartUp, pressrun: Pressrun, folder: Path
) -> None:
    up = start_up()
    up.wait_until_ready()
    url = f"http://127.0.0.1:{up.port}/v1/files"
    assert httpx.get(url).status_code == 200
    secret = pressrun("keys", "create", data_dir=folder).stdout.strip()
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert up.health()["redis"] == "ok"


def test_up_for_others_needs_a_key_or_to_be_told_that_it_does_not(
    start_up: StartUp, pressrun: Pressrun, folder: Path
) -> None:
    up = start_up(host="0.0.0.0")
    assert up.process.wait(timeout=40) == 1
    assert "PRESSRUN_HOST=0.0.0.0 can be reached from elsewhere, and there is no API key" in up.said()
    assert "the api cannot run like this; its message is above" in up.said()
    told = start_up(host="0.0.0.0", auth="off")
    told.wait_until_ready()
    told.stop()
    pressrun("keys", "create", data_dir=folder)
    keyed = start_up(host="0.0.0.0")
    keyed.wait_until_ready()
    assert httpx.get(f"http://127.0.0.1:{keyed.port}/v1/files").status_code == 401
