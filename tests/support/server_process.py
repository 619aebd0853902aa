"""A real ``branchline serve`` on a port of its own, for tests that speak HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

START_SECONDS = 120.0
STOP_SECONDS = 30.0

_ENDPOINT = re.compile(r"serving on (http://\S+)")


class ServerProcess:
    """One server process; ``base_url`` is its root, ``api_url`` the one for OpenAI clients."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.base_url = ""
        self._log = log

    @property
    def api_url(self) -> str:
        return f"{self.base_url}/v1"

    def output(self) -> str:
        """All that it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for ``/ready`` to say 200; raises with the output if that does not come."""
        wait_for(self._has_endpoint, seconds, self.output)
        wait_for(self.is_ready, seconds, self.output)

    def _has_endpoint(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"exited with {self.process.returncode}:\n{self.output()}")
        found = _ENDPOINT.search(self.output())
        self.base_url = found[1] if found else ""
        return bool(found)

    def is_ready(self) -> bool:
        return self.status("/ready") == 200

    def status(self, path: str) -> int | None:
        """Status of a GET, None where nothing answers."""
        try:
            return httpx.get(f"{self.base_url}{path}", timeout=10).status_code
        except httpx.TransportError:
            return None

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that carry ``labels``; 0 where there is none."""
        return metric_of(httpx.get(f"{self.base_url}/metrics", timeout=10).text, name, **labels)

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "branchline.engine.process" in child.cmdline():
                return child.pid
        raise AssertionError(f"there is no engine process:\n{self.output()}")

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status; raises if the process is still there after ``seconds``."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output()}") from None


@contextmanager
def serve(
    model: Path | str,
    *arguments: str,
    lora: Mapping[str, Path | str] | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = START_SECONDS,
) -> Iterator[ServerProcess]:
    """A ready server for ``model``, stopped on leaving; ``arguments`` are further flags."""
    flags = [flag for name, path in (lora or {}).items() for flag in ("--lora", f"{name}={path}")]
    with start(model, *flags, *arguments, env=env) as server:
        server.wait_until_ready(seconds)
        yield server


@contextmanager
def start(
    model: Path | str, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server that is only just starting, stopped on leaving."""
    with start_command("serve", str(model), "--port", "0", *arguments, env=env) as server:
        yield server


@contextmanager
def start_command(*words: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """``branchline WORDS``, a command that serves, just starting; stopped on leaving."""
    command = [sys.executable, "-P", "-m", "branchline", *words]
    with tempfile.TemporaryDirectory(prefix="branchline-test-") as directory:
        log = Path(directory, "output")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        try:
            yield ServerProcess(process, log)
        finally:
            _stop(process)


def metric_of(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that carry ``labels``, in what ``/metrics`` said."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    total = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(label in series for label in wanted):
            total += float(value)
    return total


def wait_for(
    condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = str
) -> None:
    """Poll until ``condition`` holds; raises with ``explain()`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}\n{explain()}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, and the engine with it: that one leaves when its parent is gone."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
