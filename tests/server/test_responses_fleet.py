"""Responses that the replicas of a fleet keep in one Redis, each tenant its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from cut_streams import SECRET
from fake_engine import FakeEngine
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.headers import FLEET_SECRET, TENANT
from branchline.server.access import Access
from branchline.server.app import create_app
from branchline.server.config import ServeConfig
from branchline.server.fleet.options import FleetOptions
from branchline.server.responses.open_store import open_store
from branchline.server.responses.store import MemoryStore
from branchline.server.services import Services
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, access, make_client, make_services

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def replica_services(tokenizer: Tokenizer, url: str) -> Services:
    who = access(fleet_secret=SECRET)
    services = make_services(tokenizer, FakeEngine(), who)
    config = replace(services.config, fleet=FleetOptions(redis_url=url, secret=SECRET))
    return replace(services, config=config, responses=open_store(config))


@pytest.fixture
async def replicas(
    tokenizer: Tokenizer, redis: RedisServer
) -> AsyncIterator[list[httpx.AsyncClient]]:
    both = [replica_services(tokenizer, redis.url) for _ in range(2)]
    clients = [make_client(create_app(services)) for services in both]
    yield clients
    for services, client in zip(both, clients, strict=True):
        await services.responses.close()
        await client.aclose()


def as_tenant(name: str) -> dict[str, str]:
    return {FLEET_SECRET: SECRET, TENANT: name}


async def create(client: httpx.AsyncClient, tenant: str = "acme", **fields: Any) -> httpx.Response:
    body = {"model": BASE, "input": "one", **fields}
    return await client.post(PATH, json=body, headers=as_tenant(tenant))


async def test_a_conversation_goes_on_at_another_replica(
    replicas: list[httpx.AsyncClient],
) -> None:
    one, other = replicas
    first = (await create(one)).json()
    second = await create(other, input="two", previous_response_id=first["id"])
    assert second.status_code == 200, second.text
    place = f"{PATH}/{second.json()['id']}"
    assert (await one.get(place, headers=as_tenant("acme"))).json() == second.json()
    items = await one.get(f"{place}/input_items", headers=as_tenant("acme"))
    assert len(items.json()["data"]) == 3


async def test_another_tenant_finds_nothing(replicas: list[httpx.AsyncClient]) -> None:
    one, other = replicas
    first = (await create(one)).json()
    place, stranger = f"{PATH}/{first['id']}", as_tenant("other")
    assert (await other.get(place, headers=stranger)).status_code == 404
    assert (await other.get(f"{place}/input_items", headers=stranger)).status_code == 404
    assert (await other.post(f"{place}/cancel", headers=stranger)).status_code == 404
    assert (await other.delete(place, headers=stranger)).status_code == 404
    refused = await create(other, "other", previous_response_id=first["id"])
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert (await other.get(place, headers=as_tenant("acme"))).status_code == 200


async def test_while_redis_is_away_answers_come_and_say_they_are_not_kept(
    tokenizer: Tokenizer,
) -> None:
    services = replica_services(tokenizer, "redis://127.0.0.1:1")
    async with make_client(create_app(services)) as client:
        made = await create(client)
        assert made.status_code == 200
        assert made.json()["store"] is False
        streamed = await create(client, stream=True)
        assert '"store":false' in streamed.text.rsplit("data: ", 1)[1]
        next_one = await create(client, previous_response_id=made.json()["id"])
        found = await client.get(f"{PATH}/{made.json()['id']}", headers=as_tenant("acme"))
        for answer in (next_one, found):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "response_store_unavailable"
    await services.responses.close()


def test_without_a_fleet_it_is_memory(tokenizer: Tokenizer) -> None:
    plain = make_services(tokenizer, FakeEngine(), Access()).config
    assert isinstance(plain, ServeConfig)
    assert isinstance(open_store(plain), MemoryStore)
