"""A job that was answered is there after a crash, and many that are posted at once wait for the disk together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pressrun.jobs.settings import Settings, load_settings

from ..jobs.conftest import OwnValkey
from .conftest import CHAT, MODEL, Api, clients, serve_model, served

ASKED = {"url": CHAT, "body": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}}
POSTS, AT_ONCE = 200, 50


@pytest.fixture
def own_valkey() -> Iterator[OwnValkey]:
    """A server that writes to disk every second, as the embedded one does."""
    with tempfile.TemporaryDirectory() as folder:  # A short path, as a socket needs.
        valkey = OwnValkey(Path(folder), appendonly="yes", appendfsync="everysec")
        yield valkey
        valkey.kill()


@pytest.fixture
def settings(own_valkey: OwnValkey, tmp_path: Path) -> Settings:
    return load_settings({}, redis_url=f"unix://{own_valkey.config['unixsocket']}", data_dir=tmp_path)


def post(api: Api, number: int) -> list[str]:
    def one(_: int) -> str:
        answer = httpx.post(f"{api.url}/v1/jobs", json=ASKED, timeout=30)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(number)))


def waits(own_valkey: OwnValkey) -> int:
    with own_valkey.client() as client:
        stats: dict[str, Any] = client.info("commandstats")
        return int(stats.get("cmdstat_waitaof", {"calls": 0})["calls"])


def test_jobs_that_were_answered_are_there_after_a_crash(own_valkey: OwnValkey, settings: Settings) -> None:
    with served(settings) as url, clients(url, settings) as api:
        serve_model(api.backend)
        before = waits(own_valkey)
        jobs = post(api, POSTS)
        assert 0 < waits(own_valkey) - before <= POSTS // 2  # Most waited with others.
        assert api.http.delete(f"/v1/jobs/{jobs[0]}").status_code == 200
        own_valkey.kill()
        own_valkey.start()
        with own_valkey.client() as client:
            client.ping()
        found = [api.http.get(f"/v1/jobs/{job}").json()["status"] for job in jobs]
        assert found == ["cancelled"] + ["queued"] * (POSTS - 1)


def test_a_job_that_redis_cannot_bring_to_disk_is_not_promised(
    own_valkey: OwnValkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pressrun.jobs.connection.DURABLE_WAIT_MS", 50)
    with served(settings) as url, clients(url, settings) as api:
        serve_model(api.backend)
        api.backend.redis.config_set("appendfsync", "no")  # The kernel may take half a minute.
        answer = api.http.post("/v1/jobs", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
