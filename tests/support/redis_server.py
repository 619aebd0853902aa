"""A real Redis (or Valkey) on a port of its own, to kill, freeze and restart."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import redis

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.up.redis_binary import find_redis_server

START_SECONDS = 10.0
_PARENT_DEATH_SIGNAL = 1


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process on 127.0.0.1; it keeps nothing on disk and dies with the test's process.

    ``arguments`` are further flags, a configuration's path first. A Sentinel has no data to keep.
    """

    def __init__(self, directory: Path, *arguments: str, keeps_data: bool = True) -> None:
        self.port = free_port()
        self._keeps_data = keeps_data
        self._directory = directory
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def client(self) -> redis.Redis:
        """A plain client for tests to look with; raises when the server is away."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def config(self, name: str) -> str:
        """What it is set to."""
        with self.client() as client:
            return str(client.config_get(name)[name])

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "it runs already"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        self._wait_until_up()

    def kill(self) -> None:
        """SIGKILL, also to a stopped process; nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def restart(self, empty: bool = True) -> None:
        """Kill it and start it again on the same port, with its data unless ``empty``."""
        dump = self._directory / "dump.rdb"
        dump.unlink(missing_ok=True)
        if not empty:
            with self.client() as client:
                client.save()
        self.kill()
        self.start()

    def _command(self) -> list[str]:
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        if self._keeps_data:
            flags += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        return [str(find_redis_server()), *self._arguments, *flags]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process is not None
            log = (self._directory / "log").read_text(errors="replace")
            assert self._process.poll() is None, f"it left:\n{log}"
            assert time.monotonic() < deadline, f"it does not answer:\n{log}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def redis_server(*arguments: str) -> Iterator[RedisServer]:
    """A server that runs, killed on leaving."""
    with tempfile.TemporaryDirectory(prefix="branchline-redis-") as directory:
        server = RedisServer(Path(directory), *arguments)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@asynccontextmanager
async def link_to_empty(server: RedisServer, timeout: float = 5.0) -> AsyncIterator[RedisLink]:
    """A link to a server that holds nothing any more."""
    with server.client() as client:
        client.flushall()
    link = RedisLink.open(server.url, timeout=timeout)
    yield link
    await link.close()


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the test's process is gone."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
