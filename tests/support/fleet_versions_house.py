"""A replica's fleet endpoints over a manager whose engine and formatter are fakes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from fastapi import FastAPI
from manager_house import ManagerHouse, manager_house, write_adapter

from branchline.server.adapters.sources import SourcePolicy
from branchline.server.config import Limits
from branchline.server.errors import install_error_handlers
from branchline.server.fleet.versions_api import (
    FleetAdapters,
    add_fleet_adapters,
    build_fleet_adapters,
)
from branchline.server.text.tokenizer import Tokenizer

SECRET = "fleet-secret"
TAR = {"content-type": "application/x-tar"}


@dataclass
class FleetHouse:
    """One replica without its door."""

    manager: ManagerHouse
    adapters: FleetAdapters
    app: FastAPI
    client: httpx.AsyncClient

    async def blob(self, data: bytes) -> str:
        answer = await self.client.post("/fleet/blobs", content=data, headers=TAR)
        assert answer.status_code == 200, answer.text
        sha256: str = answer.json()["sha256"]
        return sha256

    async def put(self, **body: object) -> httpx.Response:
        return await self.client.post("/fleet/versions", json=body)


def adapter_tar(content: str, template: str | None = None, comment: bytes = b"") -> bytes:
    """An adapter's archive; ``comment`` changes its bytes and nothing else."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in _files(content, template):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if comment:
            info = tarfile.TarInfo("README")
            info.size = len(comment)
            tar.addfile(info, io.BytesIO(comment))
    return file.getvalue()


def _files(content: str, template: str | None) -> list[tuple[str, bytes]]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        folder = write_adapter(Path(directory, "adapter"), content, template)
        return [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


@asynccontextmanager
async def fleet_house(
    root: Path, tokenizer: Tokenizer, *, max_bytes: int = 1 << 20
) -> AsyncIterator[FleetHouse]:
    """A replica on a directory; again on the same, it finds what it had."""
    async with manager_house(root, tokenizer) as house:
        policy = SourcePolicy(roots=(str(house.root / "sources"),), max_bytes=max_bytes)
        adapters = build_fleet_adapters(
            house.manager, house.catalog, replace(policy), Limits(), house.state.blobs, SECRET
        )
        app = FastAPI()
        install_error_handlers(app)
        add_fleet_adapters(app, adapters)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            yield FleetHouse(house, adapters, app, client)
            adapters.blobs.check()
