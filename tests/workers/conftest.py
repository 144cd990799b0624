"""Worker processes on the test Valkey, batches for them, and what came of those."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.records import ENDED, Batch
from pressrun.jobs.settings import load_settings
from pressrun.jobs.submit import create_batch, create_file, create_job

CHAT = "/v1/chat/completions"
MODEL = "m"
SCRIPT = Path(__file__).with_name("worker_process.py")


class Worker:
    """One worker process."""

    def __init__(self, environment: dict[str, str], log: Path, **knobs: Any) -> None:
        self.log = log
        usual = {"step_s": 0.0, "max_num_seqs": 64, "grace_s": 20.0, "broken": False, "decode_s": 0.0}
        settings = json.dumps(usual | knobs)
        with open(log, "wb") as out:
            command = [sys.executable, str(SCRIPT), settings]
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    @property
    def pid(self) -> int:
        return self.process.pid

    def engines(self) -> list[psutil.Process]:
        """The engine's process, if it is there now."""
        children = psutil.Process(self.pid).children()
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout=timeout_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()


class Farm:
    """A backend, and workers on it."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend = backend
        self.workers: list[Worker] = []
        self._folder = folder

    def work(self, *, model: str | None = None, **knobs: Any) -> Worker:
        """Start a worker, of another model if one is given; it is up when this returns."""
        log = self._folder / f"worker-{len(self.workers)}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PRESSRUN_")}
        before = self.cards()
        settings = self.backend.settings.environment()
        if model is not None:
            settings["PRESSRUN_MODEL"] = model
        worker = Worker(clean | settings, log, **knobs)
        self.workers.append(worker)
        self.until(lambda: self.cards() - before or worker.process.poll() is not None)
        return worker

    @staticmethod
    def ask(custom_id: str, text: str = "hi", **body: Any) -> dict[str, Any]:
        """A well-formed line of a batch file."""
        default = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": default | body}

    def cards(self) -> set[bytes]:
        return set(self.backend.redis.hkeys("pressrun:models"))

    def batch(self, lines: list[dict[str, Any]]) -> Batch:
        raw = "\n".join(map(json.dumps, lines)).encode()
        file = create_file(self.backend, filename="in.jsonl", purpose="batch", chunks=[raw])
        return create_batch(self.backend, input_file_id=file.id, endpoint=CHAT, completion_window="24h")

    def job(self, text: str, priority: int = 0) -> Batch:
        return create_job(self.backend, url=CHAT, body=self.ask("x", text)["body"], priority=priority)

    def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in {timeout_s} s; {self._logs()[-6000:]}"
            time.sleep(0.01)

    def _logs(self) -> str:
        return "\n".join(worker.log.read_text() for worker in self.workers)

    def many(self, number: int) -> list[dict[str, Any]]:
        return [self.ask(f"line-{i}", f"question {i}") for i in range(number)]

    def num_done(self, batch: Batch) -> int:
        return self.backend.store.batch(batch.id).counts.done

    def wait(self, batch: Batch, timeout_s: float = 30.0) -> Batch:
        """The batch, ended."""
        self.until(lambda: self.backend.store.batch(batch.id).status in ENDED, timeout_s)
        return self.backend.store.batch(batch.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        raw = b"".join(self.backend.blobs.open(self.backend.store.file(file_id).blob))
        return [json.loads(line) for line in raw.splitlines()]

    def results(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output and of the error file, once the batch has ended."""
        ended = self.wait(batch)
        assert ended.status in ("completed", "cancelled"), ended.errors
        return self.lines(ended.output_file_id), self.lines(ended.error_file_id)


def farm_on(redis: Redis, url: str, folder: Path, **changes: Any) -> Farm:
    values = {"model": MODEL, "engine": "echo", "shard_lines": 16, "lease_s": 3} | changes
    settings = load_settings({}, data_dir=folder / "data", redis_url=url, **values)
    return Farm(backend_on(settings, redis), folder)


@pytest.fixture
def farm(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Farm]:
    farm = farm_on(redis, redis_server, tmp_path)
    yield farm
    for worker in farm.workers:
        worker.end()


@pytest.fixture
def s3_farm(redis: Redis, redis_server: str, tmp_path: Path, s3_url: str) -> Iterator[Farm]:
    """One whose files and results lie in S3."""
    farm = farm_on(redis, redis_server, tmp_path, blob_url=f"{s3_url}/farm")
    yield farm
    for worker in farm.workers:
        worker.end()


@pytest.fixture
def mortal_farm(tmp_path: Path) -> Iterator[tuple[Farm, Callable[[], None]]]:
    """A farm on a Valkey of its own, and what kills that and starts it again from what it has on disk."""
    with EmbeddedValkey(tmp_path) as valkey, Redis.from_url(valkey.url) as redis:
        farm = farm_on(redis, valkey.url, tmp_path)

        def crash() -> None:
            os.kill(int((valkey.folder / "valkey.pid").read_text()), signal.SIGKILL)
            valkey.start()

        yield farm, crash
        for worker in farm.workers:
            worker.end()
