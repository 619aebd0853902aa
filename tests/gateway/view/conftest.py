"""Fake replicas, a session, and a view that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from fake_replica import NAMES, SECRET, FakeReplica

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.view.build import Membership, build_view
from branchline.gateway.view.fleet_view import FleetView


class ViewHouse:
    """Everything a view needs; ``until`` polls a condition with a deadline."""

    def __init__(self, session: aiohttp.ClientSession, stack: AsyncExitStack) -> None:
        self.session = session
        self._stack = stack
        self._tasks: list[asyncio.Task[None]] = []
        self._replicas: list[FakeReplica] = []

    async def replica(self, replica_id: str, redis_url: str | None = None) -> FakeReplica:
        replica = FakeReplica(replica_id)
        await replica.start()
        self._replicas.append(replica)
        self._stack.push_async_callback(replica.kill)
        if redis_url is not None:
            self._tasks.append(asyncio.create_task(replica.beats(redis_url)))
        return replica

    async def view(
        self, redis_url: str | None = None, urls: tuple[str, ...] = (), gateway_id: str = "g1"
    ) -> FleetView:
        link = None
        if redis_url is not None:
            link = RedisLink.open(redis_url)
            self._stack.push_async_callback(link.close)
        membership = Membership(link=link, names=NAMES, urls=urls)
        view = build_view(gateway_id, "http://g", membership, self.session, SECRET)
        self._tasks.append(asyncio.create_task(view.run()))
        return view

    async def close(self) -> None:
        for replica in self._replicas:
            replica.is_over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    async def until(condition: Callable[[], bool], seconds: float = 8.0) -> float:
        """Seconds until it held."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not condition():
            assert loop.time() - started < seconds, "it did not come true in time"
            await asyncio.sleep(0.01)
        return loop.time() - started

    @staticmethod
    async def holds(condition: Callable[[], bool], seconds: float) -> None:
        """It stays true for so long."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while loop.time() < ends_at:
            assert condition()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _house() -> AsyncIterator[ViewHouse]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        house = ViewHouse(session, stack)
        try:
            yield house
        finally:
            await house.close()


@pytest.fixture
async def house() -> AsyncIterator[ViewHouse]:
    async with _house() as house:
        yield house
