"""The serving life over a real socket, with an engine in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
from asgi_client import until
from fake_engine import FakeEngine, say

from branchline.server.lifecycle import serve_http
from branchline.server.services import build_services
from branchline.server.supervisor import EngineSupervisor
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, adapter_parts, catalog, make_services

BODY = {"model": BASE, "prompt": "x", "max_tokens": 500}


class Running:
    """A server in this event loop."""

    def __init__(self, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        self.engine = engine
        self.client = client
        self.stop = asyncio.Event()
        self.said: list[str] = []
        self.status: asyncio.Task[int]

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={**BODY, **fields})


@asynccontextmanager
async def running(
    tokenizer: Tokenizer, shutdown_timeout: float = 30.0, restart: bool = False
) -> AsyncIterator[Running]:
    engine = FakeEngine(say("x" * 1000))

    async def start() -> FakeEngine:
        server.engine = FakeEngine()
        return server.engine

    config = replace(make_services(tokenizer, engine).config, shutdown_timeout=shutdown_timeout)
    supervisor = EngineSupervisor(engine, start if restart else None)
    parts = adapter_parts(tokenizer)
    services = build_services(config, catalog(), tokenizer, supervisor, parts, created=1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            server = Running(engine, client)
            server.status = asyncio.create_task(
                serve_http(services, listener, server.stop, server.said.append)
            )
            await until(lambda: any("serving on" in line for line in server.said))
            try:
                yield server
            finally:
                server.stop.set()
                await asyncio.wait_for(server.status, 30)


async def test_it_says_where_and_what_it_serves(tokenizer: Tokenizer) -> None:
    async with running(tokenizer) as server:
        said = "\n".join(server.said)
        assert f"serving on {server.client.base_url}".rstrip("/") in said
        assert "model tenant-a (adapter digest-a)" in said
        assert (await server.client.get("/health")).status_code == 200


async def test_an_idle_server_stops_at_once_and_cleanly(tokenizer: Tokenizer) -> None:
    async with running(tokenizer) as server:
        await server.ask(max_tokens=1)
        server.stop.set()
        assert await asyncio.wait_for(server.status, 4) == 0
        assert server.engine.dead.is_set(), "the engine is stopped with it"


async def test_running_requests_finish(tokenizer: Tokenizer) -> None:
    async with running(tokenizer) as server:
        server.engine.go.clear()
        asking = asyncio.create_task(server.ask())
        await until(lambda: server.engine.running == 1)
        server.stop.set()
        await until(lambda: any("shutting down" in line for line in server.said))
        assert (await server.ask()).status_code == 503
        assert (await server.client.get("/ready")).status_code == 503
        server.engine.go.set()
        assert (await asking).json()["usage"]["completion_tokens"] == 500
        assert await asyncio.wait_for(server.status, 10) == 0


async def test_what_does_not_finish_in_time_ends_with_an_error(tokenizer: Tokenizer) -> None:
    async with running(tokenizer, shutdown_timeout=0.2) as server:
        server.engine.go.clear()
        asking = asyncio.create_task(server.ask())
        await until(lambda: server.engine.running == 1)
        server.stop.set()
        response = await asyncio.wait_for(asking, 10)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_dead"
        assert await asyncio.wait_for(server.status, 10) == 0


async def test_a_dead_engine_ends_the_server_with_1(tokenizer: Tokenizer) -> None:
    async with running(tokenizer) as server:
        server.engine.go.clear()
        asking = asyncio.create_task(server.ask())
        await until(lambda: server.engine.running == 1)
        server.engine.die()
        assert (await asyncio.wait_for(asking, 10)).status_code == 503
        assert await asyncio.wait_for(server.status, 10) == 1


async def test_a_restarted_engine_serves_on(tokenizer: Tokenizer) -> None:
    async with running(tokenizer, restart=True) as server:
        first = server.engine
        first.die()
        await until(lambda: server.engine is not first)
        assert (await server.ask()).status_code == 200
        assert (await server.client.get("/health")).status_code == 200
        server.stop.set()
        assert await asyncio.wait_for(server.status, 10) == 0
