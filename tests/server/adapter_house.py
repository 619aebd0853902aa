"""The whole application over adapters in memory, with an admin's client for it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from fake_engine import FakeEngine
from fake_manager import FakeAdapters
from fastapi import FastAPI

from branchline.server.adapters.sources import SourcePolicy
from branchline.server.app import create_app
from branchline.server.services import Services
from branchline.server.text.tokenizer import Tokenizer

from .conftest import access, make_client, make_services

ADMIN = {"authorization": "Bearer a1"}
USER = {"authorization": "Bearer k1"}
WHO = access(admin_key=("a1",), api_key=("k1",))
SOURCES = ("one", "two", "three")


@dataclass
class AdapterHouse:
    """One application; ``root`` is the directory that adapters may come from."""

    app: FastAPI
    services: Services
    adapters: FakeAdapters
    client: httpx.AsyncClient
    root: Path

    def source(self, name: str) -> str:
        """A directory that is allowed as a source."""
        return str(self.root / name)

    async def put(self, name: str, source: str, **fields: Any) -> httpx.Response:
        body = {"source": self.source(source), **fields}
        return await self.client.put(f"/admin/adapters/{quote(name)}", json=body)

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(f"/admin/adapters/{path}", json=body)

    async def put_alias(self, alias: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.put(f"/admin/aliases/{quote(alias)}", json=body)


def build(tokenizer: Tokenizer, root: Path) -> tuple[FastAPI, Services, FakeAdapters]:
    """The application, what it works with, and its adapters."""
    for name in SOURCES:
        (root / name).mkdir()
    services = make_services(tokenizer, FakeEngine(), WHO)
    adapters = FakeAdapters(services.catalog, root / "staged")
    policy = SourcePolicy(roots=(str(root),))
    services = replace(services, adapters=adapters, source_policy=policy)
    return create_app(services), services, adapters


@asynccontextmanager
async def adapter_house(tokenizer: Tokenizer) -> AsyncIterator[AdapterHouse]:
    """An application whose client has the admin key."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        app, services, adapters = build(tokenizer, root)
        async with make_client(app) as client:
            client.headers.update(ADMIN)
            yield AdapterHouse(app, services, adapters, client, root)
