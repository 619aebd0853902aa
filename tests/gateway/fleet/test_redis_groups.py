from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis_groups import SERVICE, cluster_url, redis_cluster, redis_sentinel
from redis_server import RedisServer, redis_server
from server_process import wait_for

from branchline.gateway.fleet.connection import Client, RedisDown, RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.fleet.script import Script

T = TypeVar("T")

INCREMENT = Script("return redis.call('INCR', KEYS[1])")


async def succeed(
    link: RedisLink, call: Callable[[Client], Awaitable[T]], seconds: float = 15.0
) -> T:
    """What a call gives once Redis can serve it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await link.run(call)
        except RedisDown:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_a_cluster() -> None:
    with redis_cluster(3) as nodes:
        link = RedisLink.open(cluster_url(nodes[:2]), timeout=0.3)
        tenants = [f"t{index}" for index in range(12)]
        for tenant in tenants:
            key = RedisNames("default").tenant(tenant) + ":n"
            assert await succeed(link, lambda c, key=key: INCREMENT.run(c, [key])) == 1
        assert all(node_size(node) > 0 for node in nodes)
        await succeed(link, beat)
        await freeze(link, nodes[1], tenants)
        await link.close()


async def beat(client: Client) -> None:
    """All of a fleet's keys are in one place, so a transaction takes them."""
    names = RedisNames("default")
    pipeline: Any = client.pipeline()
    pipeline.hset(names.replicas, "r", "{}")
    pipeline.zadd(names.beats, {"r": 1})
    pipeline.xread({names.changes: "0"})
    assert await pipeline.execute() == [1, 1, []]


async def freeze(link: RedisLink, node: RedisServer, tenants: list[str]) -> None:
    """One of three doesn't answer: no call hangs, and all is well afterwards."""
    node.stop()
    began = time.monotonic()
    for tenant in tenants:
        key = RedisNames("default").tenant(tenant) + ":n"
        await asyncio.gather(
            link.run(lambda c, key=key: INCREMENT.run(c, [key])), return_exceptions=True
        )
    assert not link.is_up
    assert time.monotonic() - began < 2.0
    node.cont()
    key = RedisNames("default").tenant(tenants[0]) + ":n"
    assert await succeed(link, lambda c: INCREMENT.run(c, [key])) >= 2


def node_size(node: RedisServer) -> int:
    with node.client() as client:
        return int(client.dbsize())


async def test_a_sentinel_shows_the_way_to_the_next_server() -> None:
    with (
        redis_server() as first,
        redis_server("--replicaof", f"127.0.0.1 {first.port}") as second,
        redis_sentinel(first) as sentinel,
    ):
        link = RedisLink.open(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/{SERVICE}")
        assert await succeed(link, lambda c: INCREMENT.run(c, ["n"])) == 1
        wait_for(lambda: knows_replica(sentinel) and node_size(second) == 1, 15)
        first.stop()
        assert await succeed(link, lambda c: INCREMENT.run(c, ["n"])) == 2
        await link.close()


def knows_replica(sentinel: RedisServer) -> bool:
    with sentinel.client() as client:
        return bool(client.info("sentinel")["master0"]["slaves"] == 1)
