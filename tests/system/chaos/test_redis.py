"""Redis that dies, freezes and comes back empty: no request fails, nothing is forgotten."""

from __future__ import annotations

import time

import httpx
import pytest
from chaos_cases import BASE
from gateway_process import Fleet
from server_process import wait_for
from stream_load import Case, streaming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

TENANT = {"models": [BASE], "weight": 2.0, "limits": {"requests_per_minute": 100000}}


def test_it_is_killed_and_comes_back_empty(house: Fleet, cases: list[Case]) -> None:
    """Tenants, keys and aliases are what they were before."""
    assert house.redis is not None
    key = make_tenant(house, "acme")
    put = httpx.put(f"{house.url}/admin/aliases/other", json={"adapter": "voice"}, timeout=10)
    with streaming([house.url], cases) as load:
        load.wait_for_more(6)
        house.redis.kill()
        load.wait_for_more(10)
        assert ask(house, key) == 200
        assert httpx.get(f"{house.url}/ready").json()["status"] == "degraded"
        house.redis.restart(empty=True)
        wait_for(lambda: house.state()["redis"] == "up", 10.0, house.output)
        load.wait_for_more(10)
        house.wait_until_up()
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=26)
    assert ask(house, key) == 200
    aliases = httpx.get(f"{house.url}/admin/aliases", timeout=10).json()
    assert (put.status_code < 300) == ("other" in str(aliases))
    tenants = httpx.get(f"{house.url}/admin/tenants", timeout=10).json()
    assert "acme" in str(tenants)


def test_it_freezes(house: Fleet, cases: list[Case]) -> None:
    """SIGSTOP: connections stand and nothing answers. No failed request, 100 ms more at the most.

    What a tenant with limits waits for Redis is measured on requests that only fail later, so
    that the engine's time is not in it.
    """
    assert house.redis is not None
    key = make_tenant(house, "frozen")
    with streaming([house.url], cases, num_clients=2) as load:
        load.wait_for_more(2)
        quiet = [waited(house, key) for _ in range(20)]
        house.redis.stop()
        try:
            frozen = [waited(house, key) for _ in range(40)]
            load.wait_for_more(6)
            assert house.state()["redis"] == "away"
        finally:
            house.redis.cont()
        wait_for(lambda: house.state()["redis"] == "up", 10.0, house.output)
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=8)
    assert sorted(frozen)[-1] <= sorted(quiet)[-1] + 0.1 + 0.05, (quiet, frozen)


def make_tenant(house: Fleet, name: str) -> str:
    put = httpx.put(f"{house.url}/admin/tenants/{name}", json=TENANT, timeout=10)
    assert put.status_code in (200, 201), put.text
    made = httpx.post(f"{house.url}/admin/tenants/{name}/keys", timeout=10)
    return str(made.json()["key"])


def ask(house: Fleet, key: str) -> int:
    body = {"model": BASE, "prompt": "one", "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{house.url}/v1/completions", json=body, headers=headers, timeout=60)
    return answer.status_code


def waited(house: Fleet, key: str) -> float:
    """Seconds until a request that the replica refuses at once (400) is answered."""
    body = {"model": BASE, "prompt": "one", "max_tokens": 1, "temperature": 9.0}
    headers = {"authorization": f"Bearer {key}"}
    since = time.monotonic()
    answer = httpx.post(f"{house.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    return time.monotonic() - since
