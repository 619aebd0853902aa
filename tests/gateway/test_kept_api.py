"""Kept responses at the gateway: told, deleted, limited and logged, whoever keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from gateway_house import LIMITS, House, gateway_house

from branchline.gateway.fleet import headers as fleet
from branchline.gateway.kept_api import MAX_BUFFERED_BYTES
from branchline.gateway.types import Caller, Estimate, Usage


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


async def ask(house: House, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "base", "input": "hello", "max_output_tokens": 7, **fields}
    async with house.post(path, json=body) as response:
        return response.status, await response.json()


async def test_kept_responses_are_a_tenants_own(house: House) -> None:
    house.tenants.callers = {name: Caller(tenant=name) for name in ("acme", "other")}
    house.replicas[1].kept["resp_1"] = "acme"
    path = "/v1/responses/resp_1"
    key = {"authorization": "Bearer acme"}
    for _ in range(4):
        async with house.get(f"{path}?include=a%5B%5D&x=1", headers=key) as response:
            told = await response.json()
            assert response.headers["x-request-id"]
        assert told == {"id": "resp_1", "method": "GET", "path": f"{path}?include=a%5B%5D&x=1"}
    async with house.session.delete(f"{house.url}{path}", headers=key) as response:
        assert (await response.json())["method"] == "DELETE"
    async with house.get(f"{path}/input_items", headers=key) as response:
        assert (await response.json())["path"] == f"{path}/input_items"
    async with house.post(f"{path}/cancel", headers=key) as response:
        assert response.status == 200
    async with house.get(path, headers={"authorization": "Bearer other"}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "response_not_found"
    async with house.get(path) as response:
        assert response.status == 401
    stolen = {**key, fleet.TENANT: "other", fleet.FLEET_SECRET: "guess"}
    async with house.get(path, headers=stolen) as response:
        assert response.status == 200
    await house.replicas[1].stop()
    async with house.get(path, headers=key) as response:
        assert response.status == 404  # the one that is left does not know it
    await house.replicas[0].stop()
    async with house.get(path, headers=key) as response:
        assert response.status == 503


async def test_kept_responses_are_limited_and_logged(house: House) -> None:
    house.replicas[0].kept["resp_1"] = "default"
    path = "/v1/responses/resp_1"
    async with house.get(path) as got:
        assert got.status == 200
        assert got.headers["x-ratelimit-limit-requests"] == "60"
        request_id = got.headers["x-request-id"]
    nothing = Usage(num_input_tokens=0, num_output_tokens=0)
    assert house.limiter.reserved == [Estimate(num_input_tokens=0, num_output_tokens=0)]
    assert house.limiter.settled == [nothing]
    await house.until(lambda: house.log)
    line = house.last_log()
    assert (line["request_id"], line["tenant"], line["status"]) == (request_id, "default", 200)
    assert (line["endpoint"], line["outcome"]) == ("/v1/responses/ID", "ok")
    house.limiter.refuses = True
    async with house.session.delete(f"{house.url}{path}") as got:
        assert got.status == 429
        assert got.headers["retry-after"] == "7"
        assert (await got.json())["error"]["code"] == "rate_limit_exceeded"
    await house.until(lambda: len(house.log) == 2)
    assert len(house.replicas[0].kept_peers) == 1
    metrics = house.services.metrics.render().decode()
    assert 'limits_hit_total{code="rate_limit_exceeded"} 1.0' in metrics
    named = 'endpoint="/v1/responses/ID",status="200",tenant="default"'
    assert f"requests_total{{{named}}} 1.0" in metrics
    house.limiter.refuses = False
    for replica in house.replicas:
        house.view.out[replica.replica_id] = "gone"
    async with house.get(path) as got:
        assert got.status == 503
    await house.until(lambda: len(house.log) == 3)
    assert house.limiter.settled == [nothing, None]


async def test_kept_responses_of_any_size_come_over_connections_that_last() -> None:
    async with gateway_house(1, limits=replace(LIMITS, max_body_bytes=1000)) as house:
        [replica] = house.replicas
        replica.kept["resp_1"] = "default"
        for num_bytes in (10, MAX_BUFFERED_BYTES, 3 << 20):
            replica.kept_text = "x" * num_bytes
            async with house.get("/v1/responses/resp_1") as got:
                assert got.status == 200
                assert (await got.json())["text"] == replica.kept_text
        assert len(set(replica.kept_peers)) == 1


async def test_a_kept_response_that_is_cut_is_asked_for_elsewhere_or_cut(house: House) -> None:
    cut, other = house.replicas
    cut.kept["resp_1"] = other.kept["resp_1"] = "default"
    cut.cuts_kept_after = 1000
    for _ in range(8):
        async with house.get("/v1/responses/resp_1") as got:
            assert (await got.json())["id"] == "resp_1"
    assert cut.kept_peers
    cut.cuts_kept_after = 1 << 20
    house.view.out[other.replica_id] = "gone"
    with pytest.raises(aiohttp.ClientError):
        async with house.get("/v1/responses/resp_1") as got:
            await got.read()
    await house.until(lambda: len(house.log) == 9)
    assert house.last_log()["outcome"] == "interrupted"


async def test_who_takes_no_kept_response_is_given_up() -> None:
    async with gateway_house(1, limits=replace(LIMITS, client_timeout=0.2)) as house:
        [replica] = house.replicas
        replica.kept["resp_1"], replica.kept_text = "default", "x" * (30 << 20)
        async with house.get("/v1/responses/resp_1") as got:
            assert got.status == 200
            await house.until(lambda: house.log)
            assert house.last_log()["outcome"] == "client_left"
        assert house.services.gate.num_inside == 0


async def test_without_redis_the_replica_that_keeps_it_goes_on(house: House) -> None:
    house.replicas[1].kept["resp_1"] = "default"
    for _ in range(4):
        status, _ = await ask(house, "/v1/responses", previous_response_id="resp_1")
        assert status == 200
    assert len(house.replicas[1].bodies) >= 4
    status, answer = await ask(house, "/v1/responses", previous_response_id="resp_2")
    assert (status, answer["error"]["code"]) == (400, "previous_response_not_found")
