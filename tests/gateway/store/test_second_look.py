"""A name that another gateway made just now is found before it is called unknown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis_server import RedisServer, redis_server
from server_process import metric_of
from store_house import eventually, gateway_store
from tenant_house import tenant_house

from branchline.gateway.errors import GatewayError
from branchline.gateway.store.second_look import LEAST_SECONDS, MAX_WAIT_SECONDS, SecondLook
from branchline.gateway.store.store import Store
from branchline.gateway.store_metrics import StoreCollector
from branchline.gateway.tenants.directory import TenantDirectory
from branchline.gateway.tenants.keys import draw_key


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


class Looks:
    """A store that is asked, and how often."""

    is_shared = is_up = True

    def __init__(self) -> None:
        self.times: list[float] = []
        self.is_stuck = False

    async def refresh(self) -> None:
        self.times.append(time.monotonic())
        while self.is_stuck:
            await asyncio.sleep(0.01)


async def test_a_key_opens_at_once_at_the_other_gateway(redis: RedisServer) -> None:
    """Nobody polls here: it is the look that finds tenant and key, each time."""
    async with tenant_house(redis.url) as one, gateway_store(redis.url) as two:
        there = TenantDirectory(two)
        for number in range(3):
            name = f"t{number}"
            await one.put(name)
            key = (await one.new_key(name))["key"]
            headers = {"authorization": f"Bearer {key}"}
            with pytest.raises(GatewayError):
                there.caller(headers)
            assert (await there.identify(headers)).tenant == name


async def test_what_can_not_be_a_new_key_is_not_looked_for(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as store, gateway_store(redis.url) as other:
        await other.change([("tenant", "new", b"1", 0)])
        there = TenantDirectory(store)
        for key in ("bl-", "sk-" + 43 * "x", "bl-" + 44 * "x", ""):
            with pytest.raises(GatewayError) as caught:
                await there.identify({"x-api-key": key})
            assert caught.value.status == 401
        assert store.get("tenant", "new") is None
        with pytest.raises(GatewayError) as caught:
            await there.identify({"x-api-key": draw_key()})
        assert caught.value.status == 401
        assert store.get("tenant", "new") is not None


async def test_any_number_of_strangers_share_few_looks() -> None:
    store = Looks()
    looks = SecondLook(store)  # type: ignore[arg-type]
    started = time.monotonic()

    async def stranger() -> None:
        while time.monotonic() - started < 0.55:
            asked = time.monotonic()
            assert await looks.look()
            assert any(begun >= asked for begun in store.times)

    await asyncio.gather(*(stranger() for _ in range(50)))
    gaps = [b - a for a, b in zip(store.times, store.times[1:], strict=False)]
    assert 3 <= len(store.times) <= 8
    assert min(gaps) >= LEAST_SECONDS * 0.95


async def test_nobody_waits_for_a_look_that_hangs() -> None:
    store = Looks()
    looks = SecondLook(store)  # type: ignore[arg-type]
    store.is_stuck = True
    assert not await looks.look()
    started = time.monotonic()
    assert not any(await asyncio.gather(*(looks.look() for _ in range(20))))
    assert time.monotonic() - started < MAX_WAIT_SECONDS * 3
    assert len(store.times) == 1
    store.is_stuck = False
    assert await looks.look()


async def test_who_leaves_does_not_take_the_look_along() -> None:
    store = Looks()
    looks = SecondLook(store)  # type: ignore[arg-type]
    await looks.look()
    leaving, staying = asyncio.create_task(looks.look()), asyncio.create_task(looks.look())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying


async def test_without_redis_nobody_waits(redis: RedisServer) -> None:
    async with gateway_store(None) as alone:
        assert not await SecondLook(alone).look()
    async with gateway_store(redis.url, timeout=0.1) as store:
        polling = asyncio.create_task(store.run())
        redis.kill()
        await eventually(lambda: not store.is_up)
        started = time.monotonic()
        for _ in range(100):
            assert not await SecondLook(store).look()
        assert time.monotonic() - started < 0.5
        polling.cancel()


def _shown(store: Store) -> str:
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    return generate_latest(registry).decode()


async def test_what_metrics_say_of_the_store(redis: RedisServer) -> None:
    name = "branchline_gateway_store"
    async with gateway_store(redis.url, timeout=0.3) as store:
        await store.change([("key", "k" * 64, b"1", 0), ("tenant", "t", b"1", 0)])
        text = _shown(store)
        assert metric_of(text, f"{name}_up") == 1
        assert metric_of(text, f"{name}_documents", kind="key") == 1
        assert metric_of(text, f"{name}_documents", kind="alias") == 0
        assert metric_of(text, f"{name}_restored_total") == 0
        assert "kkk" not in text
        with redis.client() as client:
            client.flushall()
        await store.refresh()
        assert metric_of(_shown(store), f"{name}_restored_total") == 2
        assert metric_of(_shown(store), f"{name}_behind_seconds") < 2
        redis.stop()
        await asyncio.sleep(0.2)
        polling = asyncio.create_task(store.run())
        await eventually(lambda: metric_of(_shown(store), f"{name}_up") == 0)
        assert metric_of(_shown(store), f"{name}_behind_seconds") >= 0.2
        polling.cancel()
        redis.cont()
