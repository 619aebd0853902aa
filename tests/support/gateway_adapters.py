"""A gateway's adapters over fake replicas and a fake store, with an admin's client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from fake_replicas import SECRET, FakeFleet, fake_fleet
from fake_store import FakeRedis, FakeStore
from starlette.applications import Starlette

from branchline.gateway.adapters.admin import AdapterAdmin
from branchline.gateway.adapters.api import adapter_routes
from branchline.gateway.adapters.bringing import Bringer
from branchline.gateway.adapters.demand import DemandMeter
from branchline.gateway.adapters.directory import AdapterDirectory
from branchline.gateway.adapters.placer import Placer
from branchline.gateway.adapters.registry import Registry
from branchline.gateway.adapters.replica_client import ReplicaClient
from branchline.gateway.fleet.records import GatewayReport
from branchline.gateway.types import Caller, Target

TAR = {"content-type": "application/x-tar"}
ANYONE = Caller(tenant="t")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class AdapterGateway:
    """One gateway of a fleet; ``clock`` is the placer's."""

    fleet: FakeFleet
    store: FakeStore
    registry: Registry
    directory: AdapterDirectory
    placer: Placer
    admin: AdapterAdmin
    client: httpx.AsyncClient
    clock: Clock
    gateways: dict[str, GatewayReport] = field(default_factory=dict)

    async def upload(self, name: str, data: bytes, **query: str) -> httpx.Response:
        path = f"/admin/adapters/{name}"
        return await self.client.put(path, content=data, headers=TAR, params=query)

    async def put(self, name: str, source: str, **fields: object) -> httpx.Response:
        return await self.client.put(f"/admin/adapters/{name}", json={"source": source, **fields})

    async def put_alias(self, alias: str, **body: object) -> httpx.Response:
        return await self.client.put(f"/admin/aliases/{alias}", json=body)

    def target(self, model: str, caller: Caller = ANYONE, key: str = "") -> Target:
        return self.directory.resolve(caller, model, key, self.fleet.snapshot())

    async def tick(self, seconds: float = 0.0) -> None:
        """Time goes by; the placer looks, and does what is to be done."""
        self.clock.now += seconds
        self.placer.tick()
        await self.placer.settled()


@asynccontextmanager
async def adapter_gateway(
    fleet: FakeFleet, redis: FakeRedis | None = None, gateway_id: str = "g1"
) -> AsyncIterator[AdapterGateway]:
    """A gateway; several may share a fleet and a store."""
    store, clock = FakeStore(redis), Clock()
    gateways: dict[str, GatewayReport] = {}

    def others() -> Mapping[str, GatewayReport]:
        return gateways

    registry, demand = Registry(store), DemandMeter(clock)  # type: ignore[arg-type]
    client = ReplicaClient(fleet.session, SECRET)
    bringer = Bringer(client, fleet.snapshot, settle_seconds=1.0)
    placer = Placer(registry, bringer, demand, gateway_id, others, fleet.snapshot, clock=clock)
    directory = AdapterDirectory(registry, bringer, placer, demand, clock)
    admin = AdapterAdmin(registry, bringer, client, directory, placer, fleet.snapshot)
    transport = httpx.ASGITransport(Starlette(routes=adapter_routes(admin)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield AdapterGateway(
            fleet, store, registry, directory, placer, admin, http, clock, gateways
        )


@asynccontextmanager
async def gateway_house(*names: str) -> AsyncIterator[AdapterGateway]:
    """One gateway over replicas of these names."""
    async with fake_fleet(*names) as fleet, adapter_gateway(fleet) as gateway:
        yield gateway
