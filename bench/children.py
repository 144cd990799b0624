"""Runs one child process to its end: hands its events on as they come, and watches the GPU's memory meanwhile.

Knows nothing of engines. A child is ended together with what it started, so that the card is free for the next one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.1
NUM_LOG_LINES = 15
# Set unless the user has set them: threads that wait must not spin, and vLLM must not look for the network or for a
# compiler, which many machines with a GPU lack.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`error` None if all went well, `log_tail` the last lines that it printed, `peak_gpu_bytes` None without a GPU."""

    error: str | None
    log_tail: str
    peak_gpu_bytes: int | None


def run_child(task: dict[str, Any], folder: Path, on_event: Callable[[dict[str, Any]], None]) -> Ended:
    """Run `task` in a child whose files go to `folder`."""
    folder.mkdir()
    task_path, events_path, log_path = folder / "task.json", folder / "events.jsonl", folder / "log.txt"
    task_path.write_text(json.dumps(task))
    events_path.touch()
    memory, error = GpuMemory(), None
    with events_path.open() as events, log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pressrun.bench.child", str(task_path), str(events_path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | os.environ,
            process_group=0,
        )
        try:
            lines = complete_lines(events.read, lambda: process.poll() is not None, memory.look)
            for event in map(json.loads, lines):
                if event["event"] == "failed":
                    error = event["error"]
                else:
                    on_event(event)
        finally:
            _end_group(process)
    if error is None and process.returncode != 0:
        error = f"ended with exit code {process.returncode}"
    log_tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:])
    return Ended(error=error, log_tail=log_tail, peak_gpu_bytes=memory.peak_bytes)


def complete_lines(read: Callable[[], str], ended: Callable[[], bool], look: Callable[[], None]) -> Iterator[str]:
    """Lines of a file that is being written, until its writer has ended and all is read."""
    rest = ""
    while True:
        is_last = ended()
        look()
        *lines, rest = (rest + read()).split("\n")
        yield from lines
        if is_last:
            return
        time.sleep(POLL_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """What a child left running would keep the memory that the next one needs. Waits until it is gone."""
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(POLL_S)


class GpuMemory:
    """The most memory in use on the first visible GPU, by whomever, as NVML tells it; no context is made for that."""

    class _Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._handle = ctypes.c_void_p()
        self._library: ctypes.CDLL | None = None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        if library.nvmlInit_v2() == 0 and self._find(library) == 0:
            self._library = library

    def _find(self, library: ctypes.CDLL) -> int:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        handle = ctypes.byref(self._handle)
        if visible.startswith("GPU-"):
            return int(library.nvmlDeviceGetHandleByUUID(visible.encode(), handle))
        return int(library.nvmlDeviceGetHandleByIndex_v2(int(visible) if visible.isdigit() else 0, handle))

    def look(self) -> None:
        info = self._Info()
        library = self._library
        if library is not None and library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(info)) == 0:
            self.peak_bytes = max(self.peak_bytes or 0, int(info.used))
