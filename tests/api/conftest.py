"""A real server on a free port, over the test Valkey, and the real SDK in front of it."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import uvicorn
from openai import OpenAI
from redis import Redis

from pressrun.api.app import create_app
from pressrun.jobs.backend import Backend, connect
from pressrun.jobs.ids import owner_id
from pressrun.jobs.lines import requests_of
from pressrun.jobs.records import Line, LineResult, ModelCard, ShardCommit
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.settings import Settings, load_settings

MODEL = "org/tiny"
CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A running server: its address, the SDK and a plain client on it, and the backend behind it."""

    url: str
    openai: OpenAI
    http: httpx.Client
    backend: Backend


ServeApi = Callable[..., Api]


@contextmanager
def served(settings: Settings, host: str = "127.0.0.1") -> Iterator[str]:
    """The app on a free port, in a thread; yields its address."""
    # Named as TCP, so that asyncio turns Nagle's algorithm off: it costs 40 ms a request otherwise.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((host, 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def clients(url: str, settings: Settings) -> Iterator[Api]:
    """Both clients and the backend for a server at `url`."""
    backend = connect(settings)
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk, httpx.Client(base_url=url) as http:
        yield Api(url=url, openai=sdk, http=http, backend=backend)
    backend.close()


def serve_model(backend: Backend) -> None:
    """Say what a worker says that serves `MODEL`."""
    backend.store.touch_model(ModelCard(id=MODEL, max_model_len=512, created=1_700_000_000, worker="w"))


@pytest.fixture
def settings(redis: Redis, redis_server: str, tmp_path: Path) -> Settings:
    return load_settings({}, data_dir=tmp_path, redis_url=redis_server)


@pytest.fixture
def serve(settings: Settings) -> Iterator[ServeApi]:
    """Starts servers with changed settings."""
    with ExitStack() as running:

        def start(**changes: Any) -> Api:
            changed = load_settings({}, **(settings.model_dump() | changes))
            api = running.enter_context(clients(running.enter_context(served(changed)), changed))
            serve_model(api.backend)
            return api

        yield start


@pytest.fixture(scope="session")
def shared_api(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One server with default settings for all tests: it keeps no state."""
    settings = load_settings({}, data_dir=tmp_path_factory.mktemp("api"), redis_url=redis_server)
    with served(settings) as url, clients(url, settings) as api:
        yield api


@pytest.fixture
def api(redis: Redis, shared_api: Api) -> Api:
    """A server with default settings, a live model, and nothing in it."""
    shutil.rmtree(shared_api.backend.settings.data_dir / "blobs", ignore_errors=True)
    serve_model(shared_api.backend)
    return shared_api


def request_line(custom_id: str, **body: Any) -> dict[str, Any]:
    """A well-formed line of a batch file."""
    default = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": default | body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """Lines as the bytes of a batch file."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def seal_results(backend: Backend, batch_id: str, run: Callable[[Line], LineResult]) -> None:
    """Do what a worker does with a validated batch: claim each shard, run its lines, commit, seal."""
    for shard in backend.shards.unsealed(batch_id):
        claim = backend.shards.claim(batch_id, shard, owner_id(), lease_s=30)
        assert claim is not None
        part = claim.shard
        results = tuple(run(line) for line in requests_of(backend.blobs_of(claim.batch), claim.batch, part))
        commit = ShardCommit(
            batch_id=batch_id, shard=shard, owner=claim.owner, num_lines=part.num_lines, results=results
        )
        assert backend.shards.commit([commit]) == ["complete"]
        seal_shard(backend, claim)
