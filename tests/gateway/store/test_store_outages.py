"""Two gateways' stores that poll while their Redis is killed, frozen and restarted empty."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis_groups import cluster_url, redis_cluster
from redis_server import RedisServer, redis_server
from store_house import contents, eventually, gateway_store, revisions

from branchline.gateway.store.documents import StoreDown
from branchline.gateway.store.store import Store


@asynccontextmanager
async def two_gateways(redis: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    async with (
        gateway_store(redis.url, tmp_path / "one", timeout=0.2) as one,
        gateway_store(redis.url, tmp_path / "two", timeout=0.2) as two,
    ):
        polls = [asyncio.create_task(store.run()) for store in (one, two)]
        try:
            yield one, two
        finally:
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)


async def change(store: Store, name: str) -> None:
    """A change as an admin makes it: again until it is said to be made."""
    async with asyncio.timeout(10):
        while True:
            with suppress(StoreDown):
                await store.change([("tenant", name, b'{"by": "admin"}', None)])
                return
            await asyncio.sleep(0.05)


async def test_killed_and_restarted_empty_again_and_again(tmp_path: Path) -> None:
    with redis_server() as redis:
        async with two_gateways(redis, tmp_path) as (one, two):
            for number in range(4):
                await change((one, two)[number % 2], f"t{number}")
                if number % 2:
                    redis.restart(empty=True)
                else:
                    redis.kill()
                    with pytest.raises(StoreDown):
                        await one.change([("tenant", "refused", b"1", None)])
                    assert one.get("tenant", f"t{number}") is not None
                    redis.start()
            names = {("tenant", f"t{number}") for number in range(4)}
            await eventually(lambda: set(contents(one)) - {("tenant", "refused")} == names, 10)
            await eventually(lambda: revisions(one) == revisions(two), 10)
        saved = (tmp_path / "one" / "store.json").read_bytes()
        assert all(f'"t{number}"'.encode() in saved for number in range(4))


async def test_a_frozen_redis_stops_changes_and_no_reads(tmp_path: Path) -> None:
    with redis_server() as redis:
        async with two_gateways(redis, tmp_path) as (one, two):
            await change(one, "a")
            await eventually(lambda: two.get("tenant", "a") is not None)
            redis.stop()
            started = time.monotonic()
            for _ in range(5):
                with pytest.raises(StoreDown):
                    await one.change([("tenant", "b", b"1", None)])
            assert time.monotonic() - started < 3
            assert contents(one) == contents(two) == {("tenant", "a"): b'{"by": "admin"}'}
            redis.cont()
            await change(two, "c")
            await eventually(lambda: one.get("tenant", "c") is not None, 10)
            await eventually(lambda: revisions(one) == revisions(two), 10)


async def test_all_is_gone_but_the_files(tmp_path: Path) -> None:
    """Redis and both gateways: what either of their files has comes back, removals too."""
    with redis_server() as redis:
        async with two_gateways(redis, tmp_path) as (one, two):
            for name in ("a", "b"):
                await change(one, name)
            await eventually(lambda: len(contents(two)) == 2)
            await two.save()
        async with gateway_store(redis.url, tmp_path / "one") as one:
            await one.change([("key", "late", b"1", 0)], [("tenant", "a")])
        redis.restart(empty=True)
        for order in (("two", "one"), ("one", "two")):
            async with (
                gateway_store(redis.url, tmp_path / order[0]) as first,
                gateway_store(redis.url, tmp_path / order[1]) as second,
            ):
                await first.refresh()
                assert set(contents(first)) == {("tenant", "b"), ("key", "late")}
                assert revisions(first) == revisions(second)
            redis.restart(empty=True)


async def test_a_cluster_that_loses_the_store_gets_it_back() -> None:
    with redis_cluster(3) as nodes:
        url = cluster_url(nodes)
        async with gateway_store(url) as one, gateway_store(url) as two:
            for name in ("a", "b"):
                await change(one, name)
            await two.refresh()
            before = revisions(two)
            assert len(before) == 2
            for node in nodes:
                with node.client() as client:
                    client.flushall()
            await asyncio.gather(one.refresh(), two.refresh())
            await one.refresh()
            await two.change([], [("tenant", "a")])
            await one.refresh()
            assert revisions(one) == revisions(two) == {("tenant", "b"): before["tenant", "b"]}
