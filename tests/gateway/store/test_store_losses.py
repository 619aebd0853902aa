"""Everything that Redis can lose of the store, over a real one: gateways give it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis_server import RedisServer, redis_server
from store_house import contents, gateway_store, revisions

from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.store.documents import Conflict

NAMES = RedisNames("test")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server


async def test_an_emptied_redis_gets_everything_back(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        await one.change([(kind, "n", b"1", 0) for kind in ("tenant", "key", "adapter", "alias")])
        await two.refresh()
        before, generation = revisions(one), one.generation
        with redis.client() as client:
            client.flushall()
        await asyncio.gather(one.refresh(), two.refresh())
        await asyncio.gather(one.refresh(), two.refresh())
        assert revisions(one) == revisions(two) == before
        assert one.generation == two.generation != generation
        async with gateway_store(redis.url) as new:
            assert revisions(new) == before


async def test_what_only_one_gateway_knew_survives(redis: RedisServer) -> None:
    """A put and a removal that the first to restore has not seen."""
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        await one.change([("tenant", "old", b"1", 0), ("tenant", "both", b"1", 0)])
        await two.refresh()
        await two.change([("tenant", "new", b"2", 0), ("tenant", "both", b"2", None)])
        await two.change([], [("tenant", "old")])
        with redis.client() as client:
            client.flushall()
        await one.refresh()
        assert ("tenant", "old") in contents(one)
        await one.change([("key", "k", b"1", 0)])
        await two.refresh()
        await one.refresh()
        expected = {("tenant", "new"): b"2", ("tenant", "both"): b"2", ("key", "k"): b"1"}
        assert contents(one) == contents(two) == expected


async def test_a_gateway_without_memory_that_comes_first_takes_nothing_away(
    redis: RedisServer,
) -> None:
    async with gateway_store(redis.url) as old:
        await old.change([("tenant", "a", b"1", 0)])
        with redis.client() as client:
            client.flushall()
        async with gateway_store(redis.url) as new:
            assert contents(new) == {}
            await new.change([("tenant", "b", b"2", 0)])
            await old.refresh()
            await new.refresh()
            assert contents(old) == contents(new) == {("tenant", "a"): b"1", ("tenant", "b"): b"2"}


async def test_a_change_into_an_emptied_redis_restores_it_first(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as store:
        revision = await store.change([("tenant", "a", b"1", 0)])
        with redis.client() as client:
            client.flushall()
        with pytest.raises(Conflict):
            await store.change([("tenant", "a", b"2", 0)])
        await store.change([("tenant", "a", b"2", revision)])
        with redis.client() as client:
            assert client.hlen(NAMES.store("tenant")) == 1


async def test_a_failover_that_lost_the_last_change(redis: RedisServer) -> None:
    """Another change gets its place in the stream; nobody may take it for the lost one."""
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        await one.change([("tenant", "a", b"1", 0)])
        await two.refresh()
        with redis.client() as client:
            saved = {key: client.dump(key) for key in client.keys("*")}
            await one.change([("tenant", "b", b"1", 0)])
            client.flushall()
            for key, value in saved.items():
                client.restore(key, 0, value)
        await two.change([("tenant", "c", b"1", 0)])
        for store in (one, two):
            await store.refresh()
        assert contents(one) == contents(two)
        assert len(contents(one)) == 3


async def test_evicted_hashes_come_back(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as store:
        await store.change([("tenant", "a", b"1", 0), ("key", "k", b"1", 0)])
        for key in (NAMES.store("tenant"), NAMES.changes, NAMES.generation):
            with redis.client() as client:
                client.delete(key)
            await store.refresh()
            with redis.client() as client:
                assert client.hlen(NAMES.store("tenant")) == 1
            assert len(contents(store)) == 2


async def test_a_large_store_is_restored_page_by_page(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        for start in range(0, 3000, 500):
            names = range(start, start + 500)
            await one.change([("key", f"k{n}", b'{"n": 1}', 0) for n in names])
        await two.refresh()
        with redis.client() as client:
            client.flushall()
        await asyncio.gather(one.refresh(), two.refresh())
        for store in (one, two):
            await store.refresh()
            assert len(contents(store)) == 3000
        with redis.client() as client:
            assert client.hlen(NAMES.store("key")) == 3000


async def test_who_missed_more_removals_than_are_kept_takes_what_is_there(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("local_copy", "remote"):
        monkeypatch.setattr(f"branchline.gateway.store.{module}.MAX_TOMBSTONES", 10)
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as away:
        await one.change([("tenant", f"t{n}", b"1", 0) for n in range(30)])
        await away.refresh()
        for number in range(25):
            await one.change([], [("tenant", f"t{number}")])
        with redis.client() as client:
            assert client.zcard(NAMES.store("gone")) == 10
            client.set(NAMES.generation, "another")
        await away.refresh()
        await one.refresh()
        assert len(contents(away)) == len(contents(one)) == 5
