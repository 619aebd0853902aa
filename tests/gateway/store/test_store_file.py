"""The store's file: what it brings back, what is no good, and a store that has nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server
from store_house import contents, gateway_store, revisions

from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.store.documents import Conflict, StoreDown, StoreError
from branchline.gateway.store.store import Store

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


async def test_the_file_brings_it_back_when_redis_and_gateway_were_gone(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with gateway_store(redis.url, tmp_path) as store:
        await store.change([("tenant", "a", b'{"x": 1}', 0), ("key", "gone", b"1", 0)])
        await store.change([], [("key", "gone")])
        before = revisions(store)
    path = tmp_path / "store.json"
    assert path.stat().st_mode & 0o777 == 0o600
    with redis.client() as client:
        client.flushall()
    async with gateway_store(redis.url, tmp_path) as store:
        assert revisions(store) == before
        assert contents(store) == {("tenant", "a"): b'{"x": 1}'}


async def test_an_old_file_does_not_bring_back_what_was_removed(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with gateway_store(redis.url, tmp_path) as store:
        await store.change([("key", "revoked", b"1", 0), ("tenant", "a", b"1", 0)])
    async with gateway_store(redis.url) as other:
        await other.change([("tenant", "a", b"2", None)], [("key", "revoked")])
        with redis.client() as client:
            client.flushall()
        await other.refresh()
        async with gateway_store(redis.url, tmp_path) as store:
            assert contents(store) == contents(other) == {("tenant", "a"): b"2"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', "null", "\x00" * 100, "half"], ids=repr
)
async def test_a_file_that_is_no_good(redis: RedisServer, tmp_path: Path, text: str) -> None:
    async with gateway_store(redis.url, tmp_path) as store:
        await store.change([("tenant", "a", b"1", 0)])
    path = tmp_path / "store.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if text == "half" else text.encode())
    with pytest.raises(StoreError, match=r"store\.json is no good"):
        async with gateway_store(None, tmp_path):
            pass
    async with gateway_store(redis.url, tmp_path) as store:
        assert contents(store) == {("tenant", "a"): b"1"}
        assert (tmp_path / "store.bad").exists()


async def test_two_gateways_can_not_share_a_directory(tmp_path: Path) -> None:
    async with gateway_store(None, tmp_path):
        with pytest.raises(StoreError, match="another gateway uses it"):
            Store(None, "test", tmp_path)


async def test_alone_the_file_is_the_truth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_store(None, tmp_path) as store:
        revision = await store.change([("tenant", "a", b"1", 0)])
        assert json.loads((tmp_path / "store.json").read_text())["entries"][0]["name"] == "a"
        with pytest.raises(Conflict):
            await store.change([("tenant", "a", b"2", 0)])
        assert await store.change([("tenant", "a", b"2", revision)]) > revision
    async with gateway_store(None, tmp_path) as store:
        assert contents(store) == {("tenant", "a"): b"2"}
        await store.change([], [("tenant", "a")])
        assert contents(store) == {}
    caplog.clear()
    async with gateway_store(None) as store:
        await store.change([("tenant", "a", b"2", 0)])
    assert "memory only" in caplog.text


async def test_alone_a_change_that_can_not_be_written_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway_store(None, tmp_path) as store:
        await store.change([("tenant", "a", b"1", 0)])

        def full(source: str, target: str) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StoreDown, match="No space left"):
                await store.change([("tenant", "a", b"2", None)])
        assert contents(store) == {("tenant", "a"): b"1"}
        assert [path.name for path in tmp_path.glob("store.json*")] == ["store.json"]
