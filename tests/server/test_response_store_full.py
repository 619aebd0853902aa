"""Kept responses in a real Redis that has a limit: what is kept, refused and found all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from redis_server import RedisServer, link_to_empty, redis_server

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.kept_redis import MAX_FILL

from .test_response_store import NAMES, fleet_store, kept


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[RedisLink]:
    async with link_to_empty(server) as opened:
        yield opened


def used_memory(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("memory")["used_memory"])


@contextmanager
def limited(server: RedisServer, max_bytes: int) -> Iterator[None]:
    """While its memory has this limit."""
    with server.client() as client:
        client.config_set("maxmemory", max_bytes)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


async def test_a_redis_that_fills_up_keeps_no_more_and_has_room_for_the_rest(
    link: RedisLink, server: RedisServer
) -> None:
    store, most = fleet_store(link), int((used_memory(server) + 1_500_000) / MAX_FILL)
    with limited(server, most), server.client() as client:
        number = 0
        while await store.keep(f"tenant-{number}", kept(number, 100_000)):
            number += 1
            assert number < 30
        assert number > 5
        assert (store.counts.num_not_kept, store.counts.num_no_room) == (1, 1)
        assert used_memory(server) < most * MAX_FILL
        client.set("what a fleet lives by", b"x" * 10_000)
        for old in range(number):
            assert await store.find(f"tenant-{old}", kept(old).id) is not None
        assert client.exists(*NAMES.responses(f"tenant-{number}")) == 0
        # Who has some has the new one in place of the oldest.
        assert await store.keep("tenant-0", kept(50, 80_000))
        assert await store.find("tenant-0", kept(0).id) is None
        assert await store.find("tenant-0", kept(50).id) is not None
        for old in range(2, 6):
            assert await store.delete(f"tenant-{old}", kept(old).id)
        assert await store.keep("new", kept(51, 30_000))
        assert not await store.keep("tenant-1", kept(52, 250_000))
        assert await store.find("tenant-1", kept(1).id) is not None
        check_sums(server, [f"tenant-{n}" for n in range(number)])
    assert link.num_openings == 0
    assert await store.keep("other", kept(53, 250_000))


def check_sums(server: RedisServer, tenants: list[str]) -> None:
    with server.client() as client:
        for tenant in tenants:
            responses, times, total = NAMES.responses(tenant)
            held = sum(map(len, client.hvals(responses)))
            assert held == int(client.get(total) or 0)
            assert client.zcard(times) == client.hlen(responses)


@pytest.mark.parametrize("may_look", [True, False])
async def test_a_redis_over_its_limit_is_not_taken_for_one_that_is_away(
    link: RedisLink, server: RedisServer, may_look: bool
) -> None:
    with server.client() as client:
        rights = ["+@all"] if may_look else ["+@all", "-info"]
        client.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~*", *rights)
    narrow = RedisLink.open(server.url.replace("//", "//some:pw@"), timeout=5.0)
    store = fleet_store(narrow)
    assert await store.keep("a", kept(1))
    with limited(server, used_memory(server) // 2):
        for tenant in ("a", "b"):
            assert not await store.keep(tenant, kept(2, 10_000))
        assert store.counts.num_no_room == 2
        assert await store.find("a", kept(1).id) is not None
        assert (narrow.is_up, narrow.num_openings) == (True, 0)
        check_sums(server, ["a", "b"])
        assert await store.delete("a", kept(1).id)
    assert await store.keep("b", kept(2))
    await narrow.close()


async def test_old_ones_go_where_there_is_no_room(link: RedisLink, server: RedisServer) -> None:
    assert await fleet_store(link).keep("a", kept(1))
    brief = fleet_store(link, ttl=0.001)
    await asyncio.sleep(0.01)
    with limited(server, used_memory(server) // 2):
        assert not await brief.keep("a", kept(2, 10_000))
        assert await fleet_store(link).find("a", kept(1).id) is None
        check_sums(server, ["a"])


async def test_a_redis_that_evicts_makes_room_itself(link: RedisLink, server: RedisServer) -> None:
    store = fleet_store(link)
    with server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        try:
            with limited(server, used_memory(server) + 300_000):
                for number in range(10):
                    assert await store.keep(f"tenant-{number}", kept(number, 100_000))
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert store.counts.num_no_room == 0
