"""Real gateways of several workers, before a real Redis and mock replicas in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from redis_server import RedisServer, redis_server
from server_process import ServerProcess, metric_of, start_command, wait_for

ADMIN = {"authorization": "Bearer the-admin-key"}
SECRET = "a-secret-of-this-fleet"
NUM_TOKENS = 4
"""Of every answer; a stream that is held takes a second for each."""

_UPSTREAM = "branchline.benchmarks.gateway_load.upstream"
_CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True)
class WorkerHouse:
    """What gateways are started before; ``directory`` is where they keep their sockets."""

    redis: RedisServer
    directory: Path

    @contextmanager
    def gateway(self, *flags: str) -> Iterator[ServerProcess]:
        """One of two workers, just starting; killed on leaving."""
        words = ["gateway", "--redis", self.redis.url, "--workers", "2", "--port", "0", *flags]
        words += ["--allow-anonymous", "--admin-key", "the-admin-key"]
        environment = {"BRANCHLINE_FLEET_SECRET": SECRET, "TMPDIR": str(self.directory)}
        with start_command(*words, env=environment) as gateway:
            yield gateway

    @contextmanager
    def serving(self, *flags: str) -> Iterator[ServerProcess]:
        """One whose workers all serve."""
        with self.gateway(*flags) as gateway:
            gateway.wait_until_ready(60)
            wait_for(lambda: num_replicas(gateway) == {2.0}, 20, gateway.output)
            yield gateway

    def leftovers(self) -> list[str]:
        """What gateways have left behind of their sockets."""
        return [path.name for path in self.directory.glob("branchline-gateway-*")]


@contextmanager
def worker_house(directory: Path) -> Iterator[WorkerHouse]:
    """Redis and two replicas, killed on leaving."""
    with redis_server() as redis:
        words = [sys.executable, "-P", "-m", _UPSTREAM, "--redis", redis.url]
        words += ["--replicas", "2", "--tokens", str(NUM_TOKENS)]
        upstream = subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ)
        assert upstream.stdout is not None
        try:
            assert len(json.loads(upstream.stdout.readline())) == 2
            yield WorkerHouse(redis, directory)
        finally:
            upstream.kill()
            upstream.communicate()


def workers_of(gateway: ServerProcess) -> list[psutil.Process]:
    """The processes of its workers."""
    return psutil.Process(gateway.process.pid).children(recursive=True)


def metrics_of(gateway: ServerProcess, *, as_admin: bool = True) -> str:
    """From whichever worker gets this connection."""
    headers = ADMIN if as_admin else {}
    return httpx.get(f"{gateway.base_url}/metrics", headers=headers, timeout=10).text


def num_up(gateway: ServerProcess) -> float:
    """How many workers tell their metrics."""
    return metric_of(metrics_of(gateway), "branchline_gateway_workers_up")


def num_replicas(gateway: ServerProcess) -> set[float]:
    """How many replicas each worker sees."""
    text, name = metrics_of(gateway), "branchline_gateway_replicas_up"
    return {metric_of(text, name, worker=str(number)) for number in range(2)}


def ask(gateway: ServerProcess) -> int:
    """The status of a request over a connection of its own; 0 where that is broken."""
    url = f"{gateway.base_url}/v1/chat/completions"
    try:
        return httpx.post(url, json=_CHAT, timeout=20).status_code
    except httpx.TransportError:
        return 0


class HeldStream:
    """A stream of ``NUM_TOKENS`` seconds that is read in the background."""

    def __init__(self, gateway: ServerProcess) -> None:
        self._url = f"{gateway.base_url}/v1/chat/completions"
        self._begun = threading.Event()
        self._text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._begun.wait(20), gateway.output()

    def _read(self) -> None:
        # As it is looked for in a body by the mock replicas: without a blank.
        body = json.dumps({**_CHAT, "stream": True, "user": "hold"}, separators=(",", ":"))
        headers = {"content-type": "application/json"}
        try:
            with httpx.stream(
                "POST", self._url, content=body, headers=headers, timeout=20
            ) as response:
                for text in response.iter_text():
                    self._text += text
                    self._begun.set()
        except httpx.TransportError:
            pass

    def is_whole(self) -> bool:
        """Once it has ended: whether every token came, and the end."""
        self._thread.join(20)
        return self._text.count("word") == NUM_TOKENS and self._text.endswith("[DONE]\n\n")
