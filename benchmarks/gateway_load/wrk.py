"""Load from wrk, a compiled client: what it was told, and what it measured."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import msgspec

Kind = Literal["plain", "stream", "hold"]

_SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT = "120s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``pause`` is how long a connection waits between requests on average, ms; 0: not at all."""

    url: str
    keys: list[str]
    seconds: float
    num_connections: int
    prompt_bytes: int
    kind: Kind = "plain"
    pause: float = 0.0
    first_number: int = 0

    @property
    def words(self) -> list[str]:
        """wrk's command line."""
        path = "/v1/chat/completions"
        seconds = f"{max(1, round(self.seconds))}s"
        return [
            *("wrk", "-t1", "-c", str(self.num_connections), "-d", seconds),
            *("--timeout", _TIMEOUT, "-s", str(_SCRIPT), self.url, "--"),
            *(path, ",".join(self.keys), str(self.prompt_bytes), self.kind),
            *(str(round(self.pause)), str(self.first_number)),
        ]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What wrk says, and the CPU seconds it took itself; latencies of whole answers, ms."""

    num_requests: int
    num_failed: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.num_requests / self.seconds


def check_wrk() -> None:
    """Raises ClickException where there is no wrk."""
    if shutil.which("wrk") is None:
        raise click.ClickException("this benchmark needs wrk: apt-get install wrk")


def version() -> str:
    """The installed wrk's."""
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return done.stdout.partition("Copyright")[0].strip()


def start(load: Load) -> subprocess.Popen[bytes]:
    """Begin to send."""
    return subprocess.Popen(load.words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> Measured:
    """Wait for the end; raises RuntimeError with wrk's output if it says nothing useful."""
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    try:
        measured = msgspec.json.decode(output.strip().splitlines()[-1], type=Measured)
    except (msgspec.DecodeError, IndexError):
        raise RuntimeError(f"wrk failed:\n{output}") from None
    return msgspec.structs.replace(measured, cpu_seconds=usage.ru_utime + usage.ru_stime)


def run(load: Load) -> Measured:
    """Send it all."""
    return finish(start(load))
