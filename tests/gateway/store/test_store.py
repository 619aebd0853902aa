"""The store over a real Redis: changes, conflicts, gaps, declarations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server
from store_house import contents, gateway_store, revisions

from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.store import remote
from branchline.gateway.store.documents import Change, Conflict, StoreDown
from branchline.gateway.store.local_copy import LocalCopy

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


async def test_a_change_is_here_at_once_and_at_the_other_after_a_poll(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        seen: list[tuple[str, str]] = []
        two.subscribe(lambda kind, name: seen.append((kind, name)))
        revision = await one.change([("tenant", "acme", b"{}", 0), ("key", "k", b"1", None)])
        document = one.get("tenant", "acme")
        assert document is not None
        assert (document.revision, document.data) == (revision, b"{}")
        assert two.get("tenant", "acme") is None
        await two.refresh()
        assert seen == [("tenant", "acme"), ("key", "k")]
        assert revisions(one) == revisions(two)
        await two.change([], [("tenant", "acme")])
        await one.refresh()
        assert contents(one) == {("key", "k"): b"1"}


async def test_revisions_rise_and_a_conflict_writes_nothing(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        first = await one.change([("tenant", "a", b"1", 0)])
        second = await two.change([("tenant", "a", b"2", first)])
        assert second > first
        with pytest.raises(Conflict) as caught:
            await one.change([("alias", "x", b"0", None), ("tenant", "a", b"3", first)])
        assert (caught.value.name, caught.value.revision) == ("a", second)
        for expected in ([("tenant", "a", b"3", 0)], [("alias", "x", b"0", 7)]):
            with pytest.raises(Conflict):
                await one.change(expected)
        with pytest.raises(Conflict):
            await one.change([("key", "k", b"0", None)], guards=[("tenant", "a", first)])
        with pytest.raises(Conflict):
            await one.change([], [("tenant", "a", first)])
        await one.change([("key", "k", b"0", 0)], guards=[("tenant", "a", second)])
        await one.refresh()
        assert contents(one) == {("tenant", "a"): b"2", ("key", "k"): b"0"}


@pytest.mark.parametrize(
    ("puts", "removals"),
    [
        ([("nothing", "a", b"1", None)], []),
        ([("tenant", "", b"1", None)], []),
        ([("tenant", "a", b"", None)], []),
        ([("tenant", "a", b"x" * 300_000, None)], []),
        ([("tenant", "a", b"1", None)], [("tenant", "a")]),
        ([("tenant", str(n), b"1", None) for n in range(501)], []),
    ],
)
async def test_what_can_not_be_a_change(puts: list, removals: list) -> None:
    async with gateway_store(None) as store:
        with pytest.raises(ValueError, match=r"must be|may name|no kind"):
            await store.change(puts, removals)
        assert contents(store) == {}


async def test_a_gap_in_the_stream_is_read_over(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_POLLED", 20)
    async with gateway_store(redis.url) as one, gateway_store(redis.url) as two:
        await one.change([("tenant", "gone", b"1", 0)])
        await two.refresh()
        await one.change([], [("tenant", "gone")])
        for number in range(1100):
            await one.change([("key", str(number % 50), b"%d" % number, None)])
        with redis.client() as client:
            assert client.xlen(NAMES.changes) == 1000
        await two.refresh()
        assert revisions(one) == revisions(two)
        assert len(contents(two)) == 50


def _declare(copy: LocalCopy) -> Change:
    return Change([("tenant", "declared", b"1", None)])


async def test_a_declaration_counts_with_and_without_redis(tmp_path: Path) -> None:
    with redis_server() as redis:
        redis.kill()
        async with gateway_store(redis.url, declare=_declare, timeout=0.2) as store:
            assert contents(store) == {("tenant", "declared"): b"1"}
            with pytest.raises(StoreDown):
                await store.change([("tenant", "a", b"1", 0)])
            redis.start()
            async with asyncio.timeout(5):
                while not store.generation:
                    with suppress(StoreDown):
                        await store.refresh()
                    await asyncio.sleep(0.01)
            async with gateway_store(redis.url) as other:
                assert contents(other) == {("tenant", "declared"): b"1"}
                await other.change([("tenant", "declared", b"2", None)])
            await store.refresh()  # the file counts at the start only
            assert contents(store) == {("tenant", "declared"): b"2"}


async def test_a_failing_listener_stops_nobody(redis: RedisServer) -> None:
    async with gateway_store(redis.url) as store:
        seen: list[str] = []

        def fail(kind: str, name: str) -> None:
            raise RuntimeError("a listener's own")

        store.subscribe(fail)
        store.subscribe(lambda _, name: seen.append(name))
        await store.change([("tenant", "a", b"1", 0)])
        assert seen == ["a"]


def test_data_is_not_in_reprs() -> None:
    change = Change([("key", "k", b"secret", None)])
    entry = change.items()[0].entry(7)
    assert "secret" not in repr(change.items()) + repr(entry)
