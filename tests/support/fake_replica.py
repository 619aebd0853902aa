"""A replica that is only its HTTP side and its beats, in the test's own loop."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import redis.asyncio
from aiohttp import web
from fleet_values import report

from branchline.gateway.fleet.headers import FLEET_SECRET, TENANT
from branchline.gateway.fleet.records import AdapterPlace, AdapterPlaces, ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames

SECRET = "fleet-secret"
NAMES = RedisNames("test")


class FakeReplica:
    """Answers while it is not ``frozen``; a completion makes progress unless it is ``wedged``."""

    def __init__(self, replica_id: str) -> None:
        self.replica_id = replica_id
        self.fields: dict[str, Any] = {"epoch": "e1", "progress": 0, "adapters_version": 0}
        self.places: list[AdapterPlace] = []
        self.beat = 0
        self.status = 200
        self.is_wedged = False
        self.is_silent = False
        self.is_over = False
        self.probes: list[tuple[str, dict[str, Any]]] = []
        self.num_adapter_reads = 0
        self._moving = asyncio.Event()
        self._moving.set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def report(self) -> ReplicaReport:
        return report(self.replica_id, url=self.url, beat=self.beat, **self.fields)

    async def start(self) -> None:
        """On the port it had before, if it had one."""
        app = web.Application()
        app.router.add_get("/fleet/state", self._state)
        app.router.add_get("/fleet/adapters", self._adapters)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        """Gone, with its beats."""
        self.is_silent = True
        self._moving.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def freeze(self) -> None:
        """As after SIGSTOP: connections open, nothing answers, no beats."""
        self.is_silent = True
        self._moving.clear()

    def thaw(self) -> None:
        self.is_silent = False
        self._moving.set()

    async def beats(self, url: str) -> None:
        """Tell Redis every 50 ms, whatever it says to that."""
        # redis-py may swallow a cancellation that comes while it connects.
        while not self.is_over:
            self.beat += 1
            client = redis.asyncio.Redis.from_url(url, socket_timeout=0.2)
            try:
                while not (self.is_silent or self.is_over):
                    await self._tell(client)
                    self.beat += 1
                    await asyncio.sleep(0.05)
            except (redis.RedisError, OSError, TimeoutError):
                pass
            finally:
                await client.aclose()
            await asyncio.sleep(0.05)

    async def _tell(self, client: Any) -> None:
        seconds, microseconds = await client.time()
        places = msgspec.json.encode(self._told_places())
        await client.set(NAMES.adapters(self.replica_id), places)
        await client.hset(NAMES.replicas, self.replica_id, msgspec.json.encode(self.report))
        now = seconds * 1000 + microseconds // 1000
        await client.zadd(NAMES.beats, {self.replica_id: now})

    def _told_places(self) -> AdapterPlaces:
        return AdapterPlaces(
            epoch=self.fields["epoch"], version=self.fields["adapters_version"], places=self.places
        )

    async def _state(self, request: web.Request) -> web.Response:
        await self._moving.wait()
        if request.headers.get(FLEET_SECRET) != SECRET:
            return web.Response(status=404)
        self.beat += 1
        return web.Response(body=msgspec.json.encode(self.report))

    async def _adapters(self, request: web.Request) -> web.Response:
        await self._moving.wait()
        self.num_adapter_reads += 1
        return web.Response(body=msgspec.json.encode(self._told_places()))

    async def _complete(self, request: web.Request) -> web.Response:
        self.probes.append((request.headers[TENANT], await request.json()))
        if self.is_wedged:
            await asyncio.sleep(60)
        await self._moving.wait()
        if self.status == 200:
            self.fields["progress"] += 1
        return web.json_response({}, status=self.status)
