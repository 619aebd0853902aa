"""``branchline up``, as a user runs it: all of the house, and what dies comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

VOICE = "voice"
START_SECONDS = 150.0


@dataclass(frozen=True)
class House:
    """A running ``branchline up`` and what it has printed."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        found = re.search(r"^up: 2 replicas behind (\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        wait_for(condition, seconds, lambda: self.output)

    def ask(self, model: str) -> httpx.Response:
        body = {"model": model, "prompt": "one", "max_tokens": 4, "ignore_eos": True}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("up")
    model = make_tiny_model(root / "model", "llama")
    voice = make_adapter(model, root / "voice", 8, seed=3)
    flags = [flag for flag in SERVE_FLAGS if flag not in ("--num-threads", "1")]
    words = ["up", str(model), "--port", "0", "--lora", f"{VOICE}={voice}", *flags]
    log = root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "branchline", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    running = House(process, log)
    try:
        running.until(lambda: "\nup: " in running.output, START_SECONDS)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_base_and_adapter_answer_without_a_key(house: House) -> None:
    names = [entry["id"] for entry in httpx.get(f"{house.url}/v1/models").json()["data"]]
    assert names == [BASE, VOICE]
    texts = {name: house.ask(name).json()["choices"][0]["text"] for name in names}
    assert len(set(texts.values())) == 2


def test_the_adapter_is_the_fleets(house: House) -> None:
    (entry,) = httpx.get(f"{house.url}/admin/adapters").json()["adapters"]
    assert entry["name"] == VOICE
    assert {place["replica"] for place in entry["replicas"]} == {"replica-1", "replica-2"}


def test_the_health_check_of_the_images_gets_its_token(house: House) -> None:
    script = Path(__file__).resolve().parents[2] / "docker" / "healthcheck.py"
    command = [sys.executable, "-P", str(script), house.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "gave 1 token" in done.stdout


def test_a_replica_that_dies_is_started_again(house: House) -> None:
    victim = next(p for p in house.family() if "replica-2" in p.cmdline())
    victim.send_signal(signal.SIGKILL)
    assert house.ask(VOICE).status_code == 200
    house.until(lambda: "replica-2 | ended with status -9" in house.output, 10)

    def is_back() -> bool:
        replicas = httpx.get(f"{house.url}/admin/fleet", timeout=10).json()["replicas"]
        return sum(replica["is_up"] for replica in replicas) == 2

    time.sleep(3)  # its lease runs out first
    house.until(is_back, START_SECONDS)
    assert house.ask(VOICE).status_code == 200


def test_redis_that_dies_is_started_again_and_nothing_is_forgotten(house: House) -> None:
    # It gives itself a title, and may be Redis or Valkey: the socket is in it either way.
    ours = [p for p in house.family() if "redis.sock" in " ".join(p.cmdline())]
    redis = next(p for p in ours if "branchline" not in p.cmdline())
    redis.send_signal(signal.SIGKILL)
    assert house.ask(VOICE).status_code == 200
    fleet = f"{house.url}/admin/fleet"
    house.until(lambda: httpx.get(fleet, timeout=10).json()["redis"] == "up", 30)
    assert house.ask(VOICE).status_code == 200
    assert VOICE in httpx.get(f"{house.url}/admin/adapters").text


def test_interrupt_ends_all_of_it(house: House) -> None:
    """Last in this file."""
    family = house.family()
    assert len(family) >= 7  # itself, Redis, the gateway, two servers and their engines
    house.process.send_signal(signal.SIGINT)
    assert house.process.wait(90) == 0, house.output
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    assert "Traceback" not in house.output
