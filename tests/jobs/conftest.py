"""A backend on the test server, and batches in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.records import Batch, ModelCard
from pressrun.jobs.settings import load_settings
from pressrun.jobs.submit import create_batch, create_file

MakeBatch = Callable[..., Batch]


def chat_line(custom_id: str, **body: Any) -> dict[str, Any]:
    """A well-formed line of a batch file."""
    default = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": default | body}


@pytest.fixture
def backend(redis: Redis, tmp_path: Path) -> Backend:
    settings = load_settings({}, data_dir=tmp_path, shard_lines=4, feed_window=3, lease_s=2.0)
    backend = backend_on(settings, redis)
    backend.store.touch_model(ModelCard(id="m", max_model_len=100, created=1, worker="w"))
    return backend


@pytest.fixture
def make_batch(backend: Backend) -> MakeBatch:
    """Uploads lines (objects or raw bytes) and creates a batch of them."""

    def make(lines: list[Any], window: str = "24h") -> Batch:
        raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        file = create_file(backend, filename="in.jsonl", purpose="batch", chunks=[raw])
        return create_batch(backend, input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)

    return make
