"""Stores over a real Redis, as several gateways have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.store.documents import KINDS
from branchline.gateway.store.store import Store

Contents = dict[tuple[str, str], bytes]


def contents(store: Store) -> Contents:
    """All documents."""
    return {
        (kind, name): document.data
        for kind in KINDS
        for name, document in store.items(kind).items()
    }


def revisions(store: Store) -> dict[tuple[str, str], int]:
    return {
        (kind, name): document.revision
        for kind in KINDS
        for name, document in store.items(kind).items()
    }


@asynccontextmanager
async def gateway_store(
    url: str | None, state_dir: Path | None = None, *, timeout: float = 2.0, **options: Any
) -> AsyncIterator[Store]:
    """A started store, closed in the end."""
    link = None if url is None else RedisLink.open(url, timeout=timeout)
    store = Store(link, "test", state_dir, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        if link is not None:
            await link.close()


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until ``condition()`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
