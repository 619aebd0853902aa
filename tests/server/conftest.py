"""A whole application over an engine in memory, spoken to as HTTP without a socket."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from tiny_models import make_tiny_tokenizer

from branchline.engine.config import EngineConfig
from branchline.gateway.fleet.tracing import Tracer
from branchline.server.access import Access, parse_access
from branchline.server.adapters.loader import AdapterLoader
from branchline.server.adapters.parts import AdapterParts
from branchline.server.adapters.sources import SourcePolicy
from branchline.server.adapters.state import StateDirectory
from branchline.server.adapters.text import TextStore
from branchline.server.app import create_app
from branchline.server.catalog import Catalog, ServedModel
from branchline.server.config import Limits, ServeConfig
from branchline.server.services import Services, build_services
from branchline.server.supervisor import EngineSupervisor
from branchline.server.text.tokenizer import Tokenizer

BASE, ADAPTER, TEMPLATED = "base", "tenant-a", "tenant-b"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(str(tokenizer_dir))


@dataclass
class Harness:
    """One application, its engine and a client for it."""

    app: FastAPI
    services: Services
    engine: FakeEngine
    client: httpx.AsyncClient

    async def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def chat(self, content: str = "hi", **fields: Any) -> httpx.Response:
        body = {"model": BASE, "messages": [{"role": "user", "content": content}], **fields}
        return await self.post("/v1/chat/completions", body)

    async def complete(self, prompt: object = "hi", **fields: Any) -> httpx.Response:
        body = {"model": BASE, "prompt": prompt, "max_tokens": 100, **fields}
        return await self.post("/v1/completions", body)

    async def sampling(self, **fields: Any) -> Any:
        """The ``SamplingParams`` that a text completion with these fields gives the engine."""
        response = await self.complete(**fields)
        assert response.status_code == 200, response.text
        return self.engine.requests[-1].params


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream; checks the closing [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def catalog() -> Catalog:
    catalog = Catalog("/models/base", [BASE])
    catalog.put(ADAPTER, {1: ServedModel(ADAPTER, "/adapters/a", "digest-a", version=1)}, 1)
    templated = ServedModel(TEMPLATED, "/adapters/b", "digest-b", TEMPLATE, version=1)
    catalog.put(TEMPLATED, {1: templated}, 1)
    return catalog


def adapter_parts(tokenizer: Tokenizer, loader: Any = None) -> AdapterParts:
    """A state directory that goes with its owner, and a loader, by default one never started."""
    directory = tempfile.TemporaryDirectory(prefix="branchline-test-")
    state = StateDirectory(directory.name)
    weakref.finalize(state, directory.cleanup)
    return AdapterParts(state, loader or AdapterLoader(), TextStore("/models/base", tokenizer))


def access(**options: Any) -> Access:
    """What the command line's access flags make."""
    none = {"api_key": (), "tenant": (), "tenant_weight": (), "admin_key": ()}
    return parse_access({**none, "fleet_secret": None, **options})


def make_services(
    tokenizer: Tokenizer,
    engine: FakeEngine,
    who: Access | None = None,
    host: str = "127.0.0.1",
    engine_options: Mapping[str, Any] = MappingProxyType({}),
    loader: Any = None,
    adapter_root: str = "/adapters",
    tracer: Tracer | None = None,
    **limits: Any,
) -> Services:
    config = ServeConfig(
        engine=EngineConfig(model="/models/base", **engine_options),
        access=who or Access(),
        host=host,
        limits=Limits(**limits),
        sources=SourcePolicy(roots=(adapter_root,)),
    )
    supervisor = EngineSupervisor(engine)
    parts = adapter_parts(tokenizer, loader)
    return build_services(config, catalog(), tokenizer, supervisor, parts, created=1, tracer=tracer)


def make_client(app: FastAPI, base_url: str = "http://test") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base_url)


@pytest.fixture
async def harness(tokenizer: Tokenizer) -> AsyncIterator[Harness]:
    engine = FakeEngine()
    services = make_services(tokenizer, engine)
    app = create_app(services)
    async with make_client(app) as client:
        yield Harness(app, services, engine, client)


@pytest.fixture
def server_of(tokenizer: Tokenizer) -> Any:
    """A client of an application that sends its traces to a tracer."""

    def traced(tracer: Tracer) -> httpx.AsyncClient:
        return make_client(create_app(make_services(tokenizer, FakeEngine(), tracer=tracer)))

    return traced


@pytest.fixture
def errors_of() -> Any:
    """Reads OpenAI's error shape, and insists on it."""

    def read(response: httpx.Response, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        body = response.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]

    return read
