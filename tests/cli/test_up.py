"""`pressrun up` as a process: everything starts, stays up, and goes."""

from __future__ import annotations

import io
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

Up = Any  # conftest.Up
StartUp = Callable[..., Up]
LeftIn = Callable[[Path], list[psutil.Process]]


def answers(up: Up, num_lines: int) -> list[str]:
    """Send a batch through the SDK; the answers of its output file."""
    body = {"model": "echo", "max_tokens": 20}
    lines = [
        {
            "custom_id": f"line-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": [{"role": "user", "content": f"hello {i}"}]},
        }
        for i in range(num_lines)
    ]
    with OpenAI(base_url=f"http://127.0.0.1:{up.port}/v1", api_key="none") as client:
        raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = client.files.create(file=("in.jsonl", io.BytesIO(raw)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + 30
        while batch.status not in ("completed", "failed") and time.monotonic() < deadline:
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed", up.said()
        assert batch.output_file_id is not None
        output = client.files.content(batch.output_file_id).text
    return [json.loads(line)["custom_id"] for line in output.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_starts_everything_and_leaves_nothing_behind(
    start_up: StartUp, folder: Path, left_in: LeftIn, number: signal.Signals
) -> None:
    up = start_up()
    up.wait_until_ready()
    assert answers(up, 5) == [f"line-{i}" for i in range(5)]
    assert up.stop(number) == 0
    assert left_in(folder) == []
    assert f"ready: http://127.0.0.1:{up.port}/v1 serves echo" in up.said()


def test_what_was_stored_is_there_after_a_restart(start_up: StartUp) -> None:
    first = start_up()
    first.wait_until_ready()
    answers(first, 2)
    first.stop()
    second = start_up()
    second.wait_until_ready()
    with OpenAI(base_url=f"http://127.0.0.1:{second.port}/v1", api_key="none") as client:
        assert [batch.status for batch in client.batches.list().data] == ["completed"]


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_child_that_dies_is_started_again(start_up: StartUp, role: str) -> None:
    up = start_up()
    up.wait_until_ready()
    victim = up.child(role)
    assert victim is not None
    victim.kill()
    up.wait_for(lambda: f"the {role} was killed by SIGKILL" in up.said())
    up.wait_for(lambda: up.child(role) not in (None, victim))
    up.wait_for(lambda: up.health().get("redis") == "ok")
    assert answers(up, 3) == ["line-0", "line-1", "line-2"]


def test_valkey_is_started_again_when_it_dies(start_up: StartUp, folder: Path, left_in: LeftIn) -> None:
    up = start_up()
    up.wait_until_ready()
    (valkey,) = [process for process in left_in(folder) if process.name().startswith("valkey")]
    valkey.kill()
    up.wait_for(lambda: up.health().get("redis") == "ok" and not valkey.is_running())
    assert answers(up, 3) == ["line-0", "line-1", "line-2"]


def test_killing_up_itself_takes_its_children_along_and_the_next_one_adopts_the_valkey(
    start_up: StartUp, folder: Path, left_in: LeftIn
) -> None:
    up = start_up()
    up.wait_until_ready()
    children = psutil.Process(up.process.pid).children(recursive=True)
    ours = [child for child in children if not child.name().startswith("valkey")]
    assert len(ours) >= 2
    up.process.kill()
    up.process.wait()
    assert psutil.wait_procs(ours, timeout=40)[1] == []
    (valkey,) = left_in(folder)
    second = start_up()
    second.wait_until_ready()
    assert valkey in left_in(folder)
    second.stop()
    assert left_in(folder) == []


def test_a_redis_of_ones_own_is_used_and_left_running(start_up: StartUp, folder: Path, redis_server: str) -> None:
    up = start_up(redis_url=redis_server)
    up.wait_until_ready()
    assert not (folder / "valkey").exists()
    assert up.stop() == 0


def test_a_taken_port_is_one_clear_error(start_up: StartUp, folder: Path, left_in: LeftIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = start_up(port=port)
        assert up.process.wait(timeout=40) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in up.said()
    assert left_in(folder) == []


def test_a_second_one_at_the_same_address_ends_and_leaves_the_first_alone(start_up: StartUp, folder: Path) -> None:
    first = start_up()
    first.wait_until_ready()
    before = first.said()
    second = start_up(port=first.port)
    assert second.process.wait(timeout=40) == 2
    said = second.said().removeprefix(before)  # Both write to one log.
    assert f"cannot listen on 127.0.0.1 port {first.port}" in said
    assert "ready: " not in said
    assert answers(first, 1) == ["line-0"]


def test_a_model_that_is_not_there_is_one_clear_error(start_up: StartUp, folder: Path) -> None:
    up = start_up(engine="native", model=folder / "nowhere")
    assert up.process.wait(timeout=40) == 1
    assert "nowhere': no such folder" in up.said()
    assert "the worker cannot run like this; its message is above" in up.said()


def test_a_worker_that_dies_again_and_again_is_given_up(start_up: StartUp, folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    up = start_up(engine="native", model=folder / "model")
    assert up.process.wait(timeout=100) == 1
    assert "the worker ended with exit code 1, 2 times in a row; its messages are above" in up.said()
