"""`pressrun` as a process of its own, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

PRESSRUN = [sys.executable, "-m", "pressrun.cli"]


def environment_with(**settings: Any) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PRESSRUN_")}
    ours = {f"PRESSRUN_{name.upper()}": str(value) for name, value in settings.items()}
    return inherited | ours | {"COLUMNS": "200"}  # wide, so that help breaks no line


def pressrun(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*PRESSRUN, *words], env=environment_with(**settings), capture_output=True, text=True, check=False, timeout=100
    )


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def users_of(folder: Path) -> list[psutil.Process]:
    """Live processes that have the folder in their environment (ours) or work in it (Valkey)."""
    found = []
    for process in psutil.process_iter(["pid", "cwd", "environ", "status"]):
        info = process.info
        ours = (info["environ"] or {}).get("PRESSRUN_DATA_DIR") == str(folder)
        if info["status"] != psutil.STATUS_ZOMBIE and (ours or (info["cwd"] or "").startswith(str(folder))):
            found.append(process)
    return found


class Up:
    """`pressrun up` with the stand-in engine, in a folder of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.port = a_free_port()
        self.settings = {"data_dir": folder, "port": self.port, "engine": "echo", "model": "echo"} | settings
        self.log = folder / "up.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*PRESSRUN, "up"], env=environment_with(**self.settings), stdout=out, stderr=out
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: "ready: " in self.said() and self.health()["models"] == ["echo"])

    def wait_for(self, condition: Any, timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def health(self) -> dict[str, Any]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5)
        except httpx.TransportError:
            return {"models": []}
        health: dict[str, Any] = answer.json()
        return health

    def child(self, role: str) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return next((child for child in children if role in child.cmdline()), None)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture
def left_in() -> Callable[[Path], list[psutil.Process]]:
    """Finds the live processes that use a data folder."""
    return users_of


@pytest.fixture
def environment() -> Callable[..., dict[str, str]]:
    """Makes an environment with these settings and no others."""
    return environment_with


@pytest.fixture(name="pressrun")
def pressrun_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command to its end."""
    return pressrun


@pytest.fixture
def free_port() -> int:
    """A port that nobody listened on just now."""
    return a_free_port()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; whatever the test did, no process may be left that uses it."""
    yield tmp_path
    left = users_of(tmp_path)
    for process in left:
        process.kill()
    assert left == []


@pytest.fixture
def start_up(folder: Path) -> Iterator[Any]:
    """Starts `pressrun up`; what still runs at the end of the test is stopped."""
    started: list[Up] = []

    def start(**settings: Any) -> Up:
        started.append(Up(folder, **settings))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.stop()
