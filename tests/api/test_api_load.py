"""Large and many: memory stays bounded, the event loop stays free."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pressrun.jobs.settings import Settings

from .conftest import Api, jsonl, request_line

MB = 2**20


@dataclass(frozen=True, slots=True)
class Process:
    """A server of its own, whose memory can be read."""

    pid: int
    url: str

    def memory(self, field: str) -> int:
        """VmRSS (now) or VmHWM (the most so far) in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024


@contextmanager
def server_process(settings: Settings) -> Iterator[Process]:
    """The app under uvicorn's own command."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "pressrun.api.app:create_app", "--port", str(port)]
    command += ["--log-level", "warning"]
    process = subprocess.Popen(command, env=os.environ | settings.environment())
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while not answers(url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Process(process.pid, url)
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def hundred_mb(tmp_path: Path) -> Path:
    path = tmp_path / "large.jsonl"
    block = jsonl(*(request_line(f"{n:06}", user="x" * 900) for n in range(1000)))
    with path.open("wb") as file:
        while file.tell() < 100 * MB:
            file.write(block)
    return path


def test_a_large_file_goes_in_and_out_in_bounded_memory(settings: Settings, hundred_mb: Path) -> None:
    with server_process(settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")}).raise_for_status()
        before = server.memory("VmRSS")
        with hundred_mb.open("rb") as file:
            answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", file)})
        assert answer.json()["bytes"] == hundred_mb.stat().st_size
        assert server.memory("VmHWM") - before < 64 * MB
        with http.stream("GET", f"/v1/files/{answer.json()['id']}/content") as download:
            assert sum(len(chunk) for chunk in download.iter_bytes(MB)) == hundred_mb.stat().st_size
        assert server.memory("VmHWM") - before < 64 * MB


def test_many_large_uploads_at_once_stay_in_bounded_memory(settings: Settings, hundred_mb: Path) -> None:
    def upload(url: str) -> int:
        with hundred_mb.open("rb") as file:
            answer = httpx.post(
                f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", file)}, timeout=90
            )
        return answer.status_code

    with server_process(settings) as server, ThreadPoolExecutor(4) as pool:
        before = server.memory("VmRSS")
        assert list(pool.map(upload, [server.url] * 4)) == [200] * 4
        assert server.memory("VmHWM") - before < 100 * MB


def test_slow_downloads_do_not_keep_others_waiting(api: Api) -> None:
    data = os.urandom(24 * MB)
    file = api.openai.files.create(file=("a.bin", data), purpose="user_data")
    with ExitStack() as open_downloads:
        for _ in range(60):
            http = open_downloads.enter_context(httpx.Client(base_url=api.url))
            download = open_downloads.enter_context(http.stream("GET", f"/v1/files/{file.id}/content"))
            assert next(download.iter_raw(1000))
        for _ in range(10):
            started = time.monotonic()
            assert api.http.get("/health").status_code == 200
            assert api.http.get("/v1/files").status_code == 200
            assert time.monotonic() - started < 1
        assert download.status_code == 200


def test_health_stays_quick_during_uploads(api: Api, hundred_mb: Path) -> None:
    waits = []
    with ThreadPoolExecutor(2) as pool, hundred_mb.open("rb") as one, hundred_mb.open("rb") as two:
        uploads = [
            pool.submit(
                httpx.post,
                f"{api.url}/v1/files",
                data={"purpose": "batch"},
                files={"file": ("a.jsonl", file)},
                timeout=90,
            )
            for file in (one, two)
        ]
        while not all(upload.done() for upload in uploads):
            started = time.monotonic()
            assert api.http.get("/health").status_code == 200
            waits.append(time.monotonic() - started)
        assert [upload.result().status_code for upload in uploads] == [200, 200]
    assert len(waits) > 3
    assert max(waits) < 1.5
