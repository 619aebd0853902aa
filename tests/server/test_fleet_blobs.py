"""The store of archives: by content, bounded, the longest unused goes first."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from branchline.server.errors import ApiError
from branchline.server.fleet.blobs import BlobStore


async def _bytes(data: bytes, size: int = 10) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _store(directory: Path, referenced: set[str], total: int = 100) -> BlobStore:
    return BlobStore(directory / "b", lambda: referenced, max_bytes=60, max_total_bytes=total)


async def test_a_blob_lies_under_its_digest(tmp_path: Path) -> None:
    store = _store(tmp_path, set())
    blob = await store.add(_bytes(b"x" * 25))
    assert blob.sha256 == hashlib.sha256(b"x" * 25).hexdigest()
    assert blob.size == 25
    assert store.path(blob).read_bytes() == b"x" * 25
    assert await store.add(_bytes(b"x" * 25)) == blob
    assert store.num_bytes == 25
    store.check()


async def test_the_longest_unused_goes_where_room_is_needed(tmp_path: Path) -> None:
    store = _store(tmp_path, set())
    one, two = [await store.add(_bytes(bytes([i]) * 40)) for i in range(2)]
    assert store.get(one.sha256)
    await store.add(_bytes(b"c" * 40))
    assert store.get(two.sha256) is None
    assert store.get(one.sha256) is not None
    store.check()


async def test_what_is_referenced_or_held_stays(tmp_path: Path) -> None:
    referenced: set[str] = set()
    store = _store(tmp_path, referenced)
    one, two = [await store.add(_bytes(bytes([i]) * 40)) for i in range(2)]
    referenced.add(one.sha256)
    with store.hold(two.sha256):
        with pytest.raises(ApiError) as caught:
            await store.add(_bytes(b"c" * 40))
        assert caught.value.status == 507
        store.discard(one.sha256)
        store.discard(two.sha256)
    assert store.get(one.sha256)
    assert store.get(two.sha256)
    store.check()
    store.discard(two.sha256)
    assert store.get(two.sha256) is None


async def test_one_that_is_too_large_or_another_leaves_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path, set())
    with pytest.raises(ApiError, match="larger"):
        await store.add(_bytes(b"x" * 61))
    with pytest.raises(ApiError) as caught:
        await store.add(_bytes(b"x"), expected="0" * 64)
    assert caught.value.code == "wrong_blob"
    assert store.num_bytes == 0
    assert not list((tmp_path / "b").iterdir())


async def test_blobs_outlive_the_process(tmp_path: Path) -> None:
    blob = await _store(tmp_path, set()).add(_bytes(b"x" * 25))
    (tmp_path / "b" / "incoming-1").write_text("half")
    (tmp_path / "b" / "lost+found").mkdir()
    store = _store(tmp_path, set())
    assert store.get(blob.sha256) == blob
    store.check()
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {blob.sha256, "lost+found"}
