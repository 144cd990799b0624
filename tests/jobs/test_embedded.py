"""One real Valkey per data folder, through every way in which a process can end."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from redis import Redis

from pressrun.jobs import embedded
from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.errors import SettingsError, StoreUnavailable

# Another process: starts (or finds) the server, says whether it owns it, and holds on until its stdin closes.
HOLDER = """
import sys
from pathlib import Path
from pressrun.jobs.embedded import EmbeddedValkey
with EmbeddedValkey(Path(sys.argv[1])) as valkey:
    print("owner" if valkey.is_owner else "guest", valkey.url, flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that uses the server of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, data_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def role(self) -> str:
        return self._stdout().readline().split()[0]

    def kill(self) -> None:
        self.process.kill()
        self._close()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=20) == 0
        self._close()

    def _stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def _close(self) -> None:
        self.process.wait(timeout=20)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._stdout().close()


def servers(data_dir: Path) -> list[psutil.Process]:
    """The Valkey processes of a data folder."""
    folder = str(data_dir.resolve() / "valkey")  # Valkey changes to its folder, and rewrites its title
    return [
        process
        for process in psutil.process_iter(["cwd", "name", "status"])
        if process.info["name"].startswith("valkey")
        and process.info["cwd"] == folder
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder; whatever the test did, no server may be left in it."""
    yield tmp_path
    left = servers(tmp_path)
    for process in left:
        process.kill()
    assert left == []


def write_durably(url: str, key: str, value: str) -> None:
    with Redis.from_url(url) as client:
        client.set(key, value)
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1


def read(url: str, key: str) -> bytes | None:
    with Redis.from_url(url) as client:
        value = client.get(key)
    assert value is None or isinstance(value, bytes)
    return value


def test_it_serves_a_private_socket_with_an_append_only_file(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir) as valkey, Redis.from_url(valkey.url, decode_responses=True) as client:
        settings = client.config_get("*")
        assert (settings["appendonly"], settings["save"], settings["port"]) == ("yes", "", "0")
        assert (settings["appendfsync"], settings["maxmemory-policy"]) == ("everysec", "noeviction")
        assert stat.S_IMODE((data_dir / "valkey" / "valkey.sock").stat().st_mode) == 0o700


def test_what_was_written_is_there_after_a_stop(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir) as valkey, Redis.from_url(valkey.url) as client:
        client.set("a", "1")
    assert servers(data_dir) == []
    with EmbeddedValkey(data_dir) as valkey:
        assert read(valkey.url, "a") == b"1"


def test_a_second_process_uses_the_server_and_leaves_it_running(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir) as valkey:
        write_durably(valkey.url, "a", "1")
        guest = Holder(data_dir)
        assert guest.role() == "guest"
        guest.leave()
        assert read(valkey.url, "a") == b"1"


def test_killing_the_starter_leaves_a_server_that_the_next_process_adopts_and_stops(data_dir: Path) -> None:
    starter = Holder(data_dir)
    assert starter.role() == "owner"
    (server,) = servers(data_dir)
    starter.kill()
    with EmbeddedValkey(data_dir) as valkey:
        assert valkey.is_owner
        assert servers(data_dir) == [server]
        write_durably(valkey.url, "a", "1")
    assert servers(data_dir) == []


def test_a_guest_becomes_the_owner_at_its_next_start_once_the_owner_is_dead(data_dir: Path) -> None:
    starter = Holder(data_dir)
    assert starter.role() == "owner"
    guest = EmbeddedValkey(data_dir)
    guest.start()
    assert not guest.is_owner
    starter.kill()
    guest.start()
    assert guest.is_owner
    guest.stop()


def test_killing_valkey_loses_no_acknowledged_write(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir) as valkey:
        for i in range(20):
            write_durably(valkey.url, f"key-{i}", str(i))
        (server,) = servers(data_dir)
        server.kill()
        valkey.start()
        assert [read(valkey.url, f"key-{i}") for i in range(20)] == [b"%d" % i for i in range(20)]
        assert servers(data_dir) != [server]


def test_a_torn_end_of_the_append_only_file_is_cut_off(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir) as valkey:
        write_durably(valkey.url, "a", "1")
        servers(data_dir)[0].kill()
        (log,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
        with log.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nb")
        valkey.start()
        assert (read(valkey.url, "a"), read(valkey.url, "b")) == (b"1", None)


def test_processes_that_start_at_once_share_one_server_with_one_owner(data_dir: Path) -> None:
    holders = [Holder(data_dir) for _ in range(4)]
    roles = [holder.role() for holder in holders]
    assert sorted(roles) == ["guest", "guest", "guest", "owner"]
    assert len(servers(data_dir)) == 1
    for _, holder in sorted(zip(roles, holders, strict=True), key=lambda pair: pair[0]):
        holder.leave()


def test_a_starter_killed_at_any_moment_leaves_one_server_at_most(data_dir: Path) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06):
        starter = Holder(data_dir)
        while not (data_dir / "valkey" / "decision.lock").exists():
            time.sleep(0.001)
        time.sleep(delay)
        starter.kill()
        with EmbeddedValkey(data_dir) as valkey:
            assert valkey.is_owner
            assert len(servers(data_dir)) == 1
        (data_dir / "valkey" / "decision.lock").unlink()


@pytest.mark.parametrize("name", ["deep/" * 40 + "data", 'with space, "quotes" and ünicode'])
def test_any_data_folder_will_do(data_dir: Path, name: str) -> None:
    with EmbeddedValkey(data_dir / name) as valkey:
        write_durably(valkey.url, "a", "1")
        assert (data_dir / name / "valkey" / "appendonlydir").is_dir()
        assert len(servers(data_dir / name)) == 1
    assert servers(data_dir / name) == []


def test_a_short_socket_folder_that_others_can_write_is_refused(data_dir: Path) -> None:
    deep = data_dir / ("deep/" * 40)
    with EmbeddedValkey(deep) as valkey, Redis.from_url(valkey.url, decode_responses=True) as client:
        short = Path(str(client.config_get("unixsocket")["unixsocket"])).parent
    assert not short.exists()
    short.mkdir()
    short.chmod(0o777)
    try:
        with pytest.raises(SettingsError, match="not a private folder"):
            EmbeddedValkey(deep).start()
    finally:
        short.rmdir()


def test_a_server_that_cannot_start_shows_its_log(data_dir: Path) -> None:
    folder = data_dir / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(StoreUnavailable, match=r"(?s)valkey\.log ends:.*manifest"):
        EmbeddedValkey(data_dir).start()


def test_a_folder_that_cannot_be_written_names_the_setting(data_dir: Path) -> None:
    (data_dir / "file").write_text("")
    with pytest.raises(SettingsError, match="PRESSRUN_DATA_DIR"):
        EmbeddedValkey(data_dir / "file").start()


def test_a_platform_without_a_binary_is_told_of_the_setting(data_dir: Path) -> None:
    # A platform that the package does not know, in a process of its own.
    code = (
        "import platform; platform.machine = lambda: 'riscv64'\n"
        "from pathlib import Path; from pressrun.jobs.embedded import EmbeddedValkey\n"
        f"EmbeddedValkey(Path({str(data_dir)!r})).start()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SettingsError: there is no embedded Valkey for this platform" in result.stderr
    assert "PRESSRUN_REDIS_URL" in result.stderr


def test_a_server_that_hangs_is_stopped_all_the_same(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(embedded, "REPLY_TIMEOUT_S", 0.2)
    valkey = EmbeddedValkey(data_dir)
    valkey.start()
    os.kill(servers(data_dir)[0].pid, signal.SIGSTOP)
    valkey.stop()
    assert servers(data_dir) == []


def test_a_server_whose_folder_was_deleted_is_stopped_all_the_same(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    valkey.start()
    (server,) = servers(data_dir)
    shutil.rmtree(data_dir / "valkey")
    valkey.stop()
    assert not server.is_running()
