"""The scripts of the store, each in the moments that a gateway rarely sees."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest
from redis_server import RedisServer, link_to_empty, redis_server

from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.store.documents import Change, Document, Tombstone
from branchline.gateway.store.local_copy import LocalCopy
from branchline.gateway.store.remote import MERGE_BYTES, PAGE, Moved, RemoteStore, merge_pages


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def remote(server: RedisServer) -> AsyncIterator[RemoteStore]:
    async with link_to_empty(server, timeout=2.0) as link:
        yield RemoteStore(link, RedisNames("test"))


async def put(remote: RemoteStore, copy: LocalCopy, data: bytes) -> int:
    items = Change([("tenant", "a", data, None)]).items()
    return await remote.change(copy.generation, items)


async def test_a_new_store_begins_above_what_its_maker_knows(remote: RemoteStore) -> None:
    copy = await remote.read(0)
    ahead = copy.synced_revision / 1e6 - time.time()
    assert 50 < ahead <= 60
    assert (await remote.read(0)).position == copy.position
    assert await put(remote, copy, b"1") > copy.synced_revision


async def test_a_maker_with_a_clock_ahead_is_not_overtaken(remote: RemoteStore) -> None:
    future = int((time.time() + 86400) * 1e6)
    copy = await remote.read(future)
    assert copy.synced_revision > future
    assert await put(remote, copy, b"1") > future


async def test_merging_takes_only_what_is_newer_than_documents_and_tombstones(
    remote: RemoteStore,
) -> None:
    copy = await remote.read(0)
    first = await put(remote, copy, b"1")
    old = Document("tenant", "a", first - 1, b"0")
    assert await remote.merge(copy.generation, [old]) == 0
    items = Change([], [("tenant", "a")]).items()
    removed = await remote.change(copy.generation, items)
    assert await remote.merge(copy.generation, [Document("tenant", "a", first, b"1")]) == 0
    assert await remote.merge(copy.generation, [Document("tenant", "a", removed + 1, b"2")]) == 1
    assert await remote.merge(copy.generation, [Tombstone("tenant", "a", removed)]) == 0
    news = await remote.poll(copy)
    assert news.entries == [Document("tenant", "a", removed + 1, b"2")]
    assert news.counts == [1, 0, 0, 0]
    assert await put(remote, copy, b"3") > removed + 1


async def test_nothing_is_written_into_another_store(
    remote: RemoteStore, server: RedisServer
) -> None:
    copy = await remote.read(0)
    with server.client() as client:
        client.flushall()
        for _ in range(2):
            with pytest.raises(Moved):
                await put(remote, copy, b"1")
            with pytest.raises(Moved):
                await remote.merge(copy.generation, [Document("tenant", "a", 7, b"1")])
            with pytest.raises(Moved):
                await remote.poll(copy)
            client.set(RedisNames("test").generation, "another")
        assert client.keys("*store*") == []


async def test_a_place_in_a_stream_that_went_another_way(
    remote: RemoteStore, server: RedisServer
) -> None:
    """After a failover that lost a change the next one has its revision, but not its place."""
    start = await remote.read(0)
    with server.client() as client:
        saved = {key: client.dump(key) for key in client.keys("*")}
        revision = await put(remote, start, b"lost")
        copy = await remote.read(0)
        assert copy.synced_revision == revision
        client.flushall()
        for key, value in saved.items():
            client.restore(key, 0, value)
    assert await put(remote, start, b"other") == revision
    with pytest.raises(Moved):
        await remote.poll(copy)
    assert (await remote.poll(start)).entries == [Document("tenant", "a", revision, b"other")]


def test_merges_are_bounded_in_number_and_bytes() -> None:
    sizes = [1] * 250 + [MERGE_BYTES // 2, MERGE_BYTES // 2, 7, MERGE_BYTES * 2] + [0] * 150
    entries = [
        Document("key", str(n), n, b"x" * size) if size else Tombstone("key", str(n), n)
        for n, size in enumerate(sizes)
    ]
    pages = list(merge_pages(entries))
    assert [entry for page in pages for entry in page] == entries
    for page in pages:
        assert 0 < len(page) <= PAGE
        total = sum(len(entry.data) for entry in page if isinstance(entry, Document))
        assert total <= MERGE_BYTES or sum(isinstance(entry, Document) for entry in page) == 1
    assert list(merge_pages([])) == []
