"""Kept responses: bounds, shares and time in memory; all of it in a real Redis, sealed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import RedisServer, link_to_empty, redis_server

from branchline.gateway.fleet import kept_responses
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.kept_limits import MAX_FINDS, MAX_FINDS_OF_TENANT, KeptLimits
from branchline.gateway.fleet.kept_redis import RedisResponses
from branchline.gateway.fleet.kept_responses import KeptResponse, Sealer, pack, read_kept
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.server.errors import ApiError
from branchline.server.responses.store import FleetStore, MemoryStore

NAMES = RedisNames("test")
SECRET = b"s" * 32


def kept(number: int, num_bytes: int = 1000) -> KeptResponse:
    """One that takes about ``num_bytes`` packed: noise does not shrink."""
    response = {"id": f"resp_{number:032x}", "output": [{"text": os.urandom(num_bytes // 2).hex()}]}
    return KeptResponse(response, [{"type": "message", "content": f"secret {number}"}])


def packed(one: KeptResponse) -> bytes:
    data = pack(one, KeptLimits())
    assert data is not None
    return data


def size(one: KeptResponse) -> int:
    return len(packed(one))


class Clock:
    """A time that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_each_tenant_finds_its_own() -> None:
    store = MemoryStore(KeptLimits())
    one = kept(1)
    assert await store.keep("a", one)
    assert await store.find("a", one.id) == one
    assert await store.find("b", one.id) is None
    assert not await store.delete("b", one.id)
    assert await store.delete("a", one.id)
    assert await store.find("a", one.id) is None
    assert store.counts.num_held_bytes == 0
    store.check()


async def test_few_are_unpacked_at_a_time_and_fewer_of_one_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most, inside = [0], list[str]()

    async def unpacked(read: object, *given: object) -> None:
        inside.append("one")
        most[0] = max(most[0], len(inside))
        await asyncio.sleep(0.001)
        inside.pop()

    store = MemoryStore(KeptLimits())
    fleet = FleetStore(cast("Any", None), cast("Any", SlowResponses(unpacked)))
    for tenant in "ab":
        await store.keep(tenant, kept(1))
    monkeypatch.setattr(asyncio, "to_thread", unpacked)
    for one in (store, fleet):
        for tenants, num in (("a", MAX_FINDS_OF_TENANT), ("ab", MAX_FINDS)):
            most[0] = 0
            asked = [one.find(tenant, kept(1).id) for tenant in tenants for _ in range(9)]
            items = [one.find_items(tenant, kept(1).id, ()) for tenant in tenants for _ in "123"]
            await asyncio.gather(*asked, *items)
            assert most[0] == num


class SlowResponses:
    """Stands in for Redis."""

    def __init__(self, work: Any) -> None:
        self._work = work

    async def find(self, tenant: str, response_id: str) -> None:
        await self._work(None)

    async def find_items(self, tenant: str, response_id: str, names: object) -> None:
        await self._work(None)


async def test_time_runs_out() -> None:
    clock = Clock()
    store = MemoryStore(KeptLimits(ttl=10), clock)
    await store.keep("a", kept(1))
    clock.now = 5
    await store.keep("b", kept(2))
    clock.now = 10
    assert await store.find("a", kept(1).id) is None
    assert await store.find("b", kept(2).id) is not None
    assert store.counts.num_held == 1
    store.check()


async def test_who_holds_most_loses_its_oldest() -> None:
    small = kept(0, 1000)
    store = MemoryStore(KeptLimits(max_bytes=6 * size(small)))
    await store.keep("quiet", small)
    for number in range(1, 20):
        assert await store.keep("loud", kept(number))
        store.check()
    assert await store.find("quiet", small.id) is not None
    assert await store.find("loud", kept(1).id) is None
    assert await store.find("loud", kept(19).id) is not None
    assert store.counts.num_evicted > 10


async def test_one_that_is_too_large_is_not_kept() -> None:
    store = MemoryStore(KeptLimits(max_response_bytes=500))
    assert not await store.keep("a", kept(1, 2000))
    assert not await MemoryStore(KeptLimits(max_bytes=0)).keep("a", kept(1))
    assert store.counts.num_held == 0


def wide(num_bytes: int) -> KeptResponse:
    """One that is small when packed."""
    return KeptResponse({"id": kept(1).id, "output": []}, [{"content": "x" * num_bytes}])


async def test_one_that_is_only_small_when_packed_is_not_kept() -> None:
    store = MemoryStore(KeptLimits())
    assert await store.keep("a", wide(15 << 20))
    assert not await store.keep("a", wide(16 << 20))
    assert store.counts.num_not_kept == 1


async def test_what_cannot_be_read_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    store, one = MemoryStore(KeptLimits()), wide(1000)
    assert await store.keep("a", one)
    monkeypatch.setattr(kept_responses, "MAX_UNPACKED_BYTES", 500)
    assert await store.find("a", one.id) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "keep", "delete", "find", "wait"]),
            st.sampled_from("abc"),
            st.integers(0, 8),
            st.integers(10, 800),
        ),
        max_size=40,
    )
)
@settings(deadline=None, max_examples=40)
def test_counts_stay_true(steps: list[tuple[str, str, int, int]]) -> None:
    async def run() -> None:
        clock = Clock()
        store = MemoryStore(KeptLimits(ttl=30, max_bytes=4000, max_number=6), clock)
        for what, tenant, number, num in steps:
            one = kept(number, num)
            if what == "keep":
                assert await store.keep(tenant, one)
                assert await store.find(tenant, one.id) == one
            elif what == "delete":
                await store.delete(tenant, one.id)
                assert await store.find(tenant, one.id) is None
            elif what == "wait":
                clock.now += number
            else:
                await store.find(tenant, one.id)
            store.check()

    asyncio.run(run())


def test_a_seal_binds_tenant_and_id() -> None:
    sealer, data = Sealer(SECRET), packed(kept(1))
    sealed = sealer.seal("a", "resp_1", data)
    assert sealer.open("a", "resp_1", sealed) == data
    assert data not in sealed
    assert sealer.seal("a", "resp_1", data) != sealed, "a nonce of its own each time"
    for tenant, response_id, other in [
        ("b", "resp_1", sealed),
        ("a", "resp_2", sealed),
        ("a", "resp_1", sealed[:-1] + b"x"),
        ("a", "resp_1", b"short"),
    ]:
        assert sealer.open(tenant, response_id, other) is None
    assert Sealer(b"t" * 32).open("a", "resp_1", sealed) is None
    assert read_kept(sealer, "a", "x", sealer.seal("a", "x", b"not packed")) is None


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[RedisLink]:
    async with link_to_empty(server) as opened:
        yield opened


def fleet_store(link: RedisLink, **limits: Any) -> FleetStore:
    bounds = replace(KeptLimits(), **limits)
    return FleetStore(link, RedisResponses(link, NAMES, Sealer(SECRET), bounds))


async def test_every_replica_finds_what_one_kept(link: RedisLink, server: RedisServer) -> None:
    one, other = fleet_store(link), fleet_store(link)
    first = kept(1)
    assert await one.keep("a", first)
    assert await other.find("a", first.id) == first
    assert await other.find("b", first.id) is None
    with server.client() as client:
        [raw] = client.hvals(NAMES.responses("a")[0])
        assert b"secret" not in raw
        assert int(client.get(NAMES.responses("a")[2])) == len(raw)
        assert all(0 < client.pttl(key) <= 86_400_000 for key in NAMES.responses("a"))
    assert not await other.delete("b", first.id)
    assert await other.delete("a", first.id)
    assert await one.find("a", first.id) is None
    assert not await one.delete("a", first.id)


async def test_redis_is_bounded_for_each_tenant(link: RedisLink, server: RedisServer) -> None:
    room = 3 * (size(kept(1)) + 100)
    store = fleet_store(link, max_bytes=room, max_number=50)
    await store.keep("quiet", kept(0))
    for number in range(1, 10):
        assert await store.keep("loud", kept(number))
        with server.client() as client:
            values = client.hvals(NAMES.responses("loud")[0])
            assert sum(map(len, values)) == int(client.get(NAMES.responses("loud")[2])) <= room
            assert client.zcard(NAMES.responses("loud")[1]) == len(values)
    assert await store.find("quiet", kept(0).id) is not None
    assert await store.find("loud", kept(9).id) is not None
    assert await store.find("loud", kept(1).id) is None
    few = fleet_store(link, max_number=2)
    for number in range(20, 24):
        await few.keep("few", kept(number, 100))
    assert [await few.find("few", kept(n).id) is not None for n in range(20, 24)] == [
        False,
        False,
        True,
        True,
    ]


async def test_redis_gets_none_that_is_only_small_when_packed(link: RedisLink) -> None:
    store = fleet_store(link, max_json_bytes=10_000)
    assert await store.keep("a", wide(9_000))
    assert not await store.keep("a", wide(10_000))
    assert store.counts.num_not_kept == 1


async def test_redis_forgets_in_time(link: RedisLink) -> None:
    assert await fleet_store(link).keep("a", kept(1))
    brief = fleet_store(link, ttl=0.05)
    deadline = asyncio.get_running_loop().time() + 5
    while await brief.find("a", kept(1).id) is not None:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert await fleet_store(link).find("a", kept(1).id) is not None, "it goes by who asks"


async def test_without_redis_storing_fails_softly_and_finding_says_so() -> None:
    link = RedisLink.open("redis://127.0.0.1:1", timeout=0.2)
    store = fleet_store(link)
    assert not await store.keep("a", kept(1))
    assert store.counts.num_not_kept == 1
    for work in (store.find("a", kept(1).id), store.delete("a", kept(1).id)):
        with pytest.raises(ApiError) as caught:
            await work
        assert caught.value.status == 503
        assert caught.value.headers["retry-after"] == "1"
    await store.close()
