"""A whole fleet whose Redis is a Cluster, or stands behind a Sentinel that fails over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import Fleet
from redis_groups import SERVICE, cluster_url, redis_cluster, redis_sentinel
from redis_server import RedisServer, redis_server
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIMITS = {"requests_per_minute": 3, "max_in_flight": 8, "budget_tokens_per_day": 100_000}


@dataclass(frozen=True)
class Address:
    """A Redis of any kind, as far as a fleet needs to know it."""

    url: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("kinds") / "model", "llama")


@contextmanager
def house(model: Path, url: str) -> Iterator[Fleet]:
    """One replica and two gateways."""
    with ExitStack() as stack:
        running = Fleet(str(model), Address(url), stack, SERVE_FLAGS)  # type: ignore[arg-type]
        running.start_replica("replica-1").wait_until_ready(120)
        for _ in range(2):
            running.start_gateway().wait_until_ready(60)
        running.wait_until_up()
        yield running


def make_tenant(house: Fleet, name: str) -> str:
    path = f"{house.url}/admin/tenants/{name}"
    put = httpx.put(path, json={"limits": LIMITS}, timeout=10)
    assert put.status_code in (200, 201), put.text
    return str(httpx.post(f"{path}/keys", timeout=10).json()["key"])


def ask(house: Fleet, key: str, gateway: int = 0, model: str = BASE) -> int:
    return httpx.post(
        f"{house.gateways[gateway].base_url}/v1/completions",
        json={"model": model, "prompt": "one", "max_tokens": 2},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    ).status_code


def test_a_cluster(model: Path, tmp_path: Path) -> None:
    """Reports, limits, keys and adapters, with the tenants' counters on other nodes."""
    with redis_cluster(3) as nodes, house(model, cluster_url(nodes)) as fleet:
        keys = [make_tenant(fleet, f"tenant-{number}") for number in range(4)]
        for key in keys:
            statuses = [ask(fleet, key, number % 2) for number in range(4)]
            assert statuses == [200, 200, 200, 429]
        source = make_adapter(model, tmp_path / "voice", 4, seed=1)
        command = [sys.executable, "-P", "-m", "branchline", "adapter", "put", "voice"]
        subprocess.run([*command, str(source), "--upload", "--url", fleet.url], check=True)
        assert ask(fleet, make_tenant(fleet, "late"), 1, "voice") == 200
        assert len(set(map(counters, nodes))) > 1, "all on one node: nothing was shared out"
        assert fleet.state(0)["redis"] == fleet.state(1)["redis"] == "up"


def counters(node: RedisServer) -> int:
    """How many tenants' counters a node holds."""
    with node.client() as client:
        return sum(1 for _ in client.scan_iter("{branchline:default:t:*"))


def test_a_sentinel_that_fails_over(model: Path) -> None:
    """The second server takes over, empty or not; tenants and replicas are still there."""
    with redis_server() as first, redis_server() as second:
        with second.client() as client:
            client.replicaof("127.0.0.1", first.port)
        with redis_sentinel(first) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
            with house(model, url) as fleet:
                key = make_tenant(fleet, "acme")
                assert ask(fleet, key, 1) == 200
                first.kill()
                assert ask(fleet, key) == 200
                wait_for(lambda: promoted(second), 60, fleet.output)
                for number in range(2):
                    wait_for(
                        lambda n=number: fleet.state(n)["redis"] == "up",  # type: ignore[misc]
                        60,
                        fleet.output,
                    )
                assert ask(fleet, make_tenant(fleet, "late"), 1) == 200
                fleet.wait_until_up()


def promoted(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.info("replication")["role"] == "master")
