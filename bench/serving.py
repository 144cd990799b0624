"""`pressrun up` for a benchmark: started on a free port with an empty data folder, driven by the `openai` SDK.

Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openai import APIConnectionError, OpenAI

from pressrun.jobs.embedded import EmbeddedValkey


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running service: a client of its API, and the process that keeps all others."""

    client: OpenAI
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """Seconds of the upload, and from creating the batch until its files are there."""

    upload_s: float
    batch_s: float
    output_file_id: str


@contextlib.contextmanager
def running_service(timeout_s: float, *, worker: list[str] | None = None, **settings: Any) -> Iterator[Service]:
    """Ready once a worker serves a model. Settings are those of the service, by field name.

    With the command of a `worker` that one runs instead of the service's own, beside a Valkey and the API.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = {f"PRESSRUN_{name.upper()}": str(value) for name, value in (settings | {"port": port}).items()}
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0)
    with contextlib.ExitStack() as stack:
        if worker is None:
            process = stack.enter_context(_running("up", os.environ | named))
        else:
            valkey = stack.enter_context(EmbeddedValkey(Path(settings["data_dir"])))
            named["PRESSRUN_REDIS_URL"] = valkey.url
            process = stack.enter_context(_running("api", os.environ | named))
            stack.enter_context(_process(worker, os.environ | named))
        _wait_until_ready(client, process, timeout_s)
        yield Service(client=client, pid=process.pid)


def _running(command: str, environment: dict[str, str]) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return _process([sys.executable, "-P", "-m", "pressrun.cli", command], environment)


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def run_batch(
    client: OpenAI, path: Path, endpoint: Literal["/v1/chat/completions", "/v1/completions"], *, poll_s: float = 0.05
) -> BatchRun:
    """Upload a file, make a batch of it and wait for its end. Raises SystemExit unless every line was answered."""
    start = time.perf_counter()
    file = client.files.create(file=path, purpose="batch")
    posted = time.perf_counter()
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(poll_s)
        batch = client.batches.retrieve(batch.id)
    finished = time.perf_counter()
    if batch.status != "completed" or batch.output_file_id is None or batch.error_file_id is not None:
        raise SystemExit(f"the batch ended as {batch.status}: {batch.request_counts}, {batch.errors}")
    return BatchRun(upload_s=posted - start, batch_s=finished - posted, output_file_id=batch.output_file_id)


def _wait_until_ready(client: OpenAI, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(APIConnectionError):
            if client.models.list().data:
                return
        time.sleep(0.2)
    raise SystemExit("pressrun up did not become ready")
