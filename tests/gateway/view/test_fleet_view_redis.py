"""The view against a real Redis: seen, lost, frozen, emptied, gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fake_replica import NAMES
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.records import AdapterPlace, GatewayReport
from branchline.gateway.view.fleet_view import FleetView


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[RedisServer]:
    server.cont()
    with server.client() as client:
        client.flushall()
    yield server
    server.cont()


def standing(view: FleetView) -> dict[str, str | None]:
    return {one.replica_id: one.out_reason for one in view.snapshot().replicas}


def is_standing(view: FleetView, **expected: str | None) -> bool:
    return standing(view) == expected


async def test_replicas_come_with_their_adapters_and_leave(house: Any, redis: RedisServer) -> None:
    a, b = await house.replica("a", redis.url), await house.replica("b", redis.url)
    a.places = [AdapterPlace(name="legal", digest="d", tier="device")]
    a.fields["adapters_version"] = 4
    view = await house.view(redis.url)
    await house.until(lambda: is_standing(view, a=None, b=None))
    await house.until(lambda: "legal" in view.snapshot().replicas[0].places)
    assert view.redis_state == "up"
    a.places, a.fields["adapters_version"] = [], 5
    await house.until(lambda: not view.snapshot().replicas[0].places)
    flight = view.begin("b", 10)
    await b.kill()
    seconds = await house.until(lambda: is_standing(view, a=None, b="lease"))
    assert 2.5 < seconds < 4.5
    assert flight.lost_reason == "lease"
    b.fields["epoch"], b.is_silent = "e2", False
    await b.start()
    await house.until(lambda: is_standing(view, a=None, b=None))
    assert view.snapshot().replicas[1].warmth < 1


@pytest.mark.slow
async def test_a_stopped_replica_is_out_within_five_seconds_and_back_by_a_probe(
    house: Any, redis: RedisServer
) -> None:
    a = await house.replica("a", redis.url)
    await house.replica("b", redis.url)
    view, changes = await house.view(redis.url), []
    view.subscribe(changes.append)
    await house.until(lambda: is_standing(view, a=None, b=None))
    flight = view.begin("a", 10)
    a.freeze()
    assert await house.until(lambda: flight.lost.is_set()) < 5.0
    assert standing(view)["b"] is None
    num_probes = len(a.probes)
    a.thaw()
    await house.until(lambda: is_standing(view, a=None, b=None))
    assert len(a.probes) > num_probes
    tenant, body = a.probes[-1]
    assert (tenant, body["model"], body["max_tokens"]) == ("branchline-probe", "m", 1)
    assert [(one.kind, one.reason) for one in changes] == [("out", "lease"), ("back", "lease")]


@pytest.mark.slow
async def test_a_wedged_engine_behind_a_healthy_face_is_out_within_five_seconds(
    house: Any, redis: RedisServer
) -> None:
    a = await house.replica("a", redis.url)
    view = await house.view(redis.url)
    await house.until(lambda: is_standing(view, a=None))
    a.is_wedged = True
    flight = view.begin("a", 10)
    assert await house.until(lambda: flight.lost.is_set()) < 5.3
    assert (flight.lost_reason, standing(view)) == ("wedged", {"a": "wedged"})
    a.is_wedged = False
    await house.until(lambda: is_standing(view, a=None))


async def test_a_frozen_redis_takes_nobody_out_and_replicas_are_asked_themselves(
    house: Any, redis: RedisServer
) -> None:
    a, b = await house.replica("a", redis.url), await house.replica("b", redis.url)
    view = await house.view(redis.url)
    await house.until(lambda: is_standing(view, a=None, b=None))
    flight = view.begin("a", 10)
    flight.first_byte()
    redis.stop()
    await house.until(lambda: view.redis_state == "away")
    a.fields["num_running"] = 7
    await house.until(lambda: view.snapshot().replicas[0].report.num_running == 7, 2.0)
    # A replica that dies now is noticed all the same.
    await b.kill()
    a.fields["progress"] += 1
    await house.until(lambda: is_standing(view, a=None, b="lease"))
    redis.cont()
    await house.until(lambda: view.redis_state == "up")
    a.fields["num_running"] = 0
    await house.holds(lambda: is_standing(view, a=None, b="lease"), 1.0)
    assert not flight.lost.is_set()


async def test_an_empty_redis_deletes_nobody(house: Any) -> None:
    with redis_server() as redis:
        await house.replica("a", redis.url)
        view = await house.view(redis.url)
        await house.until(lambda: is_standing(view, a=None))
        flight = view.begin("a", 10)
        flight.first_byte()
        restart = asyncio.create_task(asyncio.to_thread(redis.restart))
        await house.holds(lambda: is_standing(view, a=None), 1.0)
        await restart
        await house.until(lambda: view.redis_state == "up")
        await house.holds(lambda: is_standing(view, a=None), 1.0)
        assert not flight.lost.is_set()


async def test_gateways_know_each_other_and_their_loads(house: Any, redis: RedisServer) -> None:
    await house.replica("a", redis.url)
    one, other = await house.view(redis.url), await house.view(redis.url, gateway_id="g2")
    other.tell_demand(lambda: {"v1": 12.5})
    await house.until(lambda: one.num_gateways == other.num_gateways == 2)
    await house.until(lambda: one.gateways()["g2"].adapter_demand == {"v1": 12.5})
    assert set(one.gateways()) == {"g1", "g2"}
    await house.until(lambda: is_standing(other, a=None))
    flights = [other.begin("a", 50) for _ in range(3)]
    seen = []
    await house.until(lambda: seen.append(one.snapshot().replicas[0].load) or len(seen) > 60)
    assert max(load.num_prefill_tokens for load in seen) == 150
    for flight in flights:
        flight.end("ok")
    await house.until(lambda: one.snapshot().replicas[0].load.num_requests == 0)


async def test_what_others_write_into_redis_breaks_nothing(house: Any, redis: RedisServer) -> None:
    with redis.client() as client:
        client.hset(
            NAMES.replicas, mapping={"x": b"\xff{", "y": b"[]", "z": b'{"replica_id": "a"}'}
        )
        client.zadd(NAMES.beats, {"x": 9e15, "y": 1, "z": 9e15, b"\xff": 9e15})
        stray = GatewayReport(gateway_id="other", url="", beat=1)
        client.hset(NAMES.gateways, "spoofed", msgspec.json.encode(stray))
        client.zadd(NAMES.gateway_beats, {"spoofed": 9e15})
    await house.replica("a", redis.url)
    view = await house.view(redis.url)
    await house.until(lambda: is_standing(view, a=None))
    assert view.num_gateways == 1
    with redis.client() as client:
        assert not client.hexists(NAMES.replicas, "y")


@pytest.mark.slow
async def test_one_whose_way_to_redis_is_cut_stays(house: Any, redis: RedisServer) -> None:
    a = await house.replica("a", redis.url)
    view = await house.view(redis.url)
    await house.until(lambda: is_standing(view, a=None))
    a.is_silent = True
    await house.holds(lambda: is_standing(view, a=None), 4.0)
