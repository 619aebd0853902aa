"""``make demo``, as a user runs it: real answers over HTTP, and an orderly end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 420

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Demo:
    """A running ``make demo``, its address and the file its output goes to."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ask(self, model: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is a king?"}],
            "temperature": 0,
            "max_tokens": 24,
        }
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def script(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(c for c in children if any("demo.py" in part for part in c.cmdline()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_demo(port: int, log: Path) -> subprocess.Popen[bytes]:
    command = ["make", "demo", f"PORT={port}", f"VENV={sys.prefix}"]
    # As from a shell, also when make runs these tests.
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    env = inherited | {"PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    port, log = free_port(), tmp_path_factory.mktemp("demo") / "log"
    running = Demo(make_demo(port, log), f"http://127.0.0.1:{port}", log)
    deadline = time.monotonic() + START_SECONDS
    while "until Ctrl-C" not in running.output:
        assert running.process.poll() is None, running.output
        assert time.monotonic() < deadline, running.output
        time.sleep(0.2)
    yield running
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGTERM)
        running.process.wait(60)


def test_it_prints_where_to_go_and_a_first_answer(demo: Demo) -> None:
    assert f"{demo.url}/v1/chat/completions" in demo.output
    assert "curl " in demo.output
    assert "from openai import OpenAI" in demo.output
    answer = demo.output.split("is asked:")[1].split("\n", 1)[1].split("Serving until")[0]
    assert len(answer.split()) >= 3


def test_base_and_every_voice_answer_in_their_own_words(demo: Demo) -> None:
    models = [entry["id"] for entry in httpx.get(f"{demo.url}/v1/models").json()["data"]]
    assert len(models) >= 4
    answers = {model: demo.ask(model).strip() for model in models}
    assert all(answers.values()), answers
    assert len(set(answers.values())) == len(models), answers


def test_a_busy_port_is_one_line(demo: Demo, tmp_path: Path) -> None:
    port, log = int(demo.url.rsplit(":", 1)[1]), tmp_path / "log"
    assert make_demo(port, log).wait(60) != 0
    error, *rest = [
        line for line in log.read_text().splitlines() if "make" not in line.split(":")[0]
    ]
    assert error.startswith(f"Error: port {port} is taken")
    assert not rest


def test_interrupt_ends_it_in_order(demo: Demo) -> None:
    """Last in this file: the demo is gone afterwards, its server and engine with it."""
    script = demo.script()
    family = [script, *script.children(recursive=True)]
    assert len(family) >= 2
    script.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 0, demo.output
    assert demo.output.rstrip().endswith("Stopped.")
    assert "Traceback" not in demo.output
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
