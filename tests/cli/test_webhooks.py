"""`pressrun webhooks`, on a Redis that is named and on the one in the data folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from openai import OpenAI
from redis import Redis

from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.webhooks import EVENT_TYPES

from ..receiver import receiving

Pressrun = Callable[..., "CompletedProcess[str]"]


def test_an_endpoint_is_made_shown_tested_and_deleted(pressrun: Pressrun, redis: Redis, redis_server: str) -> None:
    def webhooks(*words: str) -> CompletedProcess[str]:
        return pressrun("webhooks", *words, redis_url=redis_server, webhook_allow_private=True)

    with receiving() as receiver:
        made = webhooks("create", receiver.url, "--event", "batch.failed", "--event", "batch.expired", "--name", "ops")
        assert made.returncode == 0, made.stderr
        name, endpoint_id, word, secret = made.stdout.split()
        assert (name, word) == ("id", "secret")
        assert secret.startswith("whsec_")
        shown = webhooks("list").stdout
        assert shown == f"{endpoint_id}  ops  {receiver.url}  batch.failed batch.expired\n"
        assert webhooks("list", "--tenant", "other").stdout == ""
        assert webhooks("test", endpoint_id, "--event", "batch.failed").stdout == "status 200\n"
        assert b'"type":"batch.failed"' in receiver.got[0].body
    assert webhooks("deliveries", endpoint_id).returncode == 0
    assert webhooks("delete", endpoint_id).returncode == 0
    gone = webhooks("delete", endpoint_id)
    assert (gone.returncode, gone.stderr) == (1, f"pressrun: No such webhook endpoint: {endpoint_id}\n")


def test_without_a_redis_it_is_the_one_in_the_data_folder(pressrun: Pressrun, tmp_path: Path) -> None:
    nothing = pressrun("webhooks", "list", data_dir=tmp_path)
    assert nothing.returncode == 2
    assert f"no Pressrun has run in {tmp_path}" in nothing.stderr
    with EmbeddedValkey(tmp_path):
        made = pressrun("webhooks", "create", "https://example.com/", data_dir=tmp_path)
        assert made.returncode == 0, made.stderr
        assert pressrun("webhooks", "list", data_dir=tmp_path).stdout.endswith(" ".join(EVENT_TYPES) + "\n")
    stopped = pressrun("webhooks", "list", data_dir=tmp_path)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("pressrun: Redis does not answer")


def test_an_address_that_may_not_be_used_is_refused_with_the_setting(
    pressrun: Pressrun, redis: Redis, redis_server: str
) -> None:
    refused = pressrun("webhooks", "create", "http://127.0.0.1/", redis_url=redis_server)
    assert refused.returncode == 1
    assert "PRESSRUN_WEBHOOK_ALLOW_PRIVATE" in refused.stderr


def test_a_batch_that_went_up_in_parts_is_told_of_though_the_worker_was_killed(
    start_up: Callable[..., Any], pressrun: Pressrun, folder: Path
) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    data = json.dumps(line).encode()
    up = start_up(webhook_allow_private=True)
    up.wait_until_ready()
    with receiving() as receiver, OpenAI(base_url=f"http://127.0.0.1:{up.port}/v1", api_key="none") as sdk:
        receiver.answers = [503, 200]
        made = pressrun("webhooks", "create", receiver.url, data_dir=folder, webhook_allow_private=True)
        endpoint_id, secret = made.stdout.split()[1::2]
        upload = sdk.uploads.upload_file_chunked(
            file=data,
            filename="in.jsonl",
            bytes=len(data),
            mime_type="application/jsonl",
            purpose="batch",
            part_size=50,
        )
        assert upload.file
        batch = sdk.batches.create(
            input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        def told() -> str:
            return pressrun("webhooks", "deliveries", endpoint_id, data_dir=folder).stdout

        up.wait_for(lambda: "status 503" in told())
        up.child("worker").kill()
        up.wait_for(lambda: "status 200" in told())
        events = [sdk.webhooks.unwrap(got.body, got.headers, secret=secret) for got in receiver.got]
    assert [(event.type, event.data.id) for event in events] == [("batch.completed", batch.id)] * 2
    assert events[0].id == events[1].id
