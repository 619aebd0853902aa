"""Redis, the mock replicas, one gateway and a bare door, on 127.0.0.1; only it has workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from branchline.gateway.up.redis_binary import find_redis_server

from .process_tree import ProcessTree

START_SECONDS = 60.0
ADMIN_KEY = "admin-key-of-this-benchmark"
FLEET_SECRET = "secret-of-this-benchmark"
PLENTY = 10**12
LIMITS = {
    "requests_per_minute": PLENTY,
    "input_tokens_per_minute": PLENTY,
    "output_tokens_per_minute": PLENTY,
    "max_in_flight": 100_000,
    "budget_tokens_per_day": 10**15,
}


@dataclass(frozen=True)
class House:
    """Who runs where; ``keys`` are the tenants' API keys, ``bare_url`` is ``bare.py``'s."""

    gateway_url: str
    bare_url: str
    upstream_urls: list[str]
    keys: list[str]
    processes: dict[str, ProcessTree]

    @property
    def gateway(self) -> ProcessTree:
        """What is measured: the gateway's process and, where it has some, its workers."""
        return self.processes["gateway"]


@contextmanager
def house(
    directory: Path,
    *,
    num_replicas: int,
    num_tenants: int,
    num_tokens: int,
    num_workers: int = 1,
    flags: tuple[str, ...] = (),
) -> Iterator[House]:
    """All of it up, every tenant with a key and all five limits; killed on leaving."""
    with ExitStack() as stack:
        port = free_port()
        redis_words = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1"]
        redis_words += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        redis = stack.enter_context(_process(redis_words, directory / "redis.log"))
        wait_for(lambda: _connects(port), "Redis", redis)
        url = f"redis://127.0.0.1:{port}"
        upstream_log = directory / "upstream.log"
        upstream = stack.enter_context(
            _process(_upstream_words(url, num_replicas, num_tokens), upstream_log)
        )
        wait_for(lambda: upstream_log.read_text().endswith("]\n"), "the mock replicas", upstream)
        upstream_urls = json.loads(upstream_log.read_text())
        bare_log = directory / "bare.log"
        bare_words = [sys.executable, "-m", f"{__package__}.bare", "--upstream", upstream_urls[0]]
        bare = stack.enter_context(_process(bare_words, bare_log))
        wait_for(lambda: bare_log.read_text().endswith('"\n'), "the bare door", bare)
        gateway_url = f"http://127.0.0.1:{free_port()}"
        words = [sys.executable, "-m", "branchline", "gateway", "--redis", url]
        words += ["--port", gateway_url.rpartition(":")[2], "--admin-key", ADMIN_KEY, *flags]
        words += ["--state-dir", str(directory / "state"), "--workers", str(num_workers)]
        # Its access log goes nowhere: a million lines are no use to anybody.
        gateway = stack.enter_context(_process(words, directory / "gateway.log", discard=True))
        wait_for(lambda: _is_ready(gateway_url, num_workers), "the gateway", gateway)
        pids = {"redis": redis.pid, "upstream": upstream.pid, "bare": bare.pid}
        pids["gateway"] = gateway.pid
        yield House(
            gateway_url=gateway_url,
            bare_url=json.loads(bare_log.read_text()),
            upstream_urls=upstream_urls,
            keys=[_make_tenant(gateway_url, f"tenant-{n}") for n in range(num_tenants)],
            processes={name: ProcessTree(pid) for name, pid in pids.items()},
        )


def _upstream_words(url: str, num_replicas: int, num_tokens: int) -> list[str]:
    module = "branchline.benchmarks.gateway_load.upstream"
    words = [sys.executable, "-m", module, "--redis", url]
    return [*words, "--replicas", str(num_replicas), "--tokens", str(num_tokens)]


def _make_tenant(gateway_url: str, name: str) -> str:
    """Make it, and give its API key."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=gateway_url, headers=headers, timeout=10) as client:
        client.put(f"/admin/tenants/{name}", json={"limits": LIMITS}).raise_for_status()
        answer = client.post(f"/admin/tenants/{name}/keys", json={})
        return str(answer.raise_for_status().json()["key"])


@contextmanager
def _process(
    words: list[str], log: Path, *, discard: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "BRANCHLINE_FLEET_SECRET": FLEET_SECRET}
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL if discard else output,
            stderr=output if discard else subprocess.STDOUT,
            env=environment,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until it holds; raises RuntimeError when the process ends or time runs out."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up")
        time.sleep(0.05)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_ready(url: str, num_workers: int) -> bool:
    """Whether it has replicas, and all of its workers serve."""
    try:
        if httpx.get(f"{url}/ready", timeout=5).status_code != 200:
            return False
        all_up = f"branchline_gateway_workers_up {num_workers:.1f}"
        return num_workers == 1 or all_up in httpx.get(f"{url}/metrics", timeout=5).text
    except httpx.TransportError:
        return False
