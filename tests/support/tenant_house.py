"""The tenant API over a real store, as an ASGI application without the door before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from store_house import gateway_store

from branchline.gateway.limits.usage import UsageReport, UsageRow
from branchline.gateway.store.store import Store
from branchline.gateway.tenants.api import tenant_routes
from branchline.gateway.tenants.directory import TenantDirectory
from branchline.gateway.tenants.tenants import Tenants

NOW = 1_800_000_000.0


class FakeUsage:
    """Says what it was asked for, as usage."""

    async def read(self, tenants: Sequence[str] | None, first: date, last: date) -> UsageReport:
        if first > last:
            raise ValueError("first, last: must be 1 to 366 days, in this order")
        rows = [
            UsageRow(
                tenant=tenant,
                day=day,
                label="legal",
                num_requests=3,
                num_input_tokens=20,
                num_output_tokens=7,
                num_cached_tokens=16,
            )
            for tenant in tenants or ["acme", "beta"]
            for day in sorted({first, last})
        ]
        then = datetime.fromtimestamp(NOW, UTC)
        return UsageReport(rows=rows, scope="gateway", complete_until=then, gaps=[])


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class TenantHouse:
    """One gateway's store, API and directory."""

    store: Store
    app: Starlette
    directory: TenantDirectory
    clock: Clock
    client: httpx.AsyncClient

    async def call(self, verb: str, path: str, **options: Any) -> httpx.Response:
        return await self.client.request(verb, f"/admin/{path}", **options)

    async def put(self, name: str, **body: Any) -> dict[str, Any]:
        """Make a tenant."""
        answer = await self.call("PUT", f"tenants/{name}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def new_key(self, name: str, **body: Any) -> dict[str, Any]:
        answer = await self.call("POST", f"tenants/{name}/keys", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


def tenant_app(store: Store, clock: Clock) -> Starlette:
    return Starlette(routes=tenant_routes(Tenants(store, clock=clock), FakeUsage()))


@asynccontextmanager
async def tenant_house(
    url: str | None = None, state_dir: Path | None = None, *, allow_anonymous: bool = False
) -> AsyncIterator[TenantHouse]:
    """A house over the Redis at ``url``, or over its own file alone."""
    clock = Clock()
    async with gateway_store(url, state_dir) as store:
        app = tenant_app(store, clock)
        directory = TenantDirectory(store, allow_anonymous=allow_anonymous, clock=clock)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield TenantHouse(store, app, directory, clock, client)
