"""Requests and the versions that answer them: leases, replacement in the midst, canaries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_client import AsgiRequest, until
from fake_engine import FakeEngine
from fastapi import FastAPI
from manager_house import FakeLoader, write_adapter

from branchline.engine.types import GenerationRequest
from branchline.server.adapters.sources import AdapterSource
from branchline.server.app import create_app
from branchline.server.catalog import AliasTarget
from branchline.server.services import Services
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, make_client, make_services

PATH = "/v1/completions"


@dataclass
class Served:
    """An application whose adapters are real but for the formatting and the engine."""

    app: FastAPI
    services: Services
    engine: FakeEngine
    client: httpx.AsyncClient
    root: Path

    async def put(self, name: str, content: str) -> str:
        """The digest that the name then has."""
        source = AdapterSource("directory", str(write_adapter(self.root / content, content)))
        return (await self.services.adapters.put(name, source)).version.digest

    async def ask(self, model: str, **options: Any) -> httpx.Response:
        body = {"model": model, "prompt": "hi", "max_tokens": 3, **options.pop("body", {})}
        return await self.client.post(PATH, json=body, **options)

    def stream(self, model: str, max_messages: int | None = None) -> AsgiRequest:
        body = {"model": model, "prompt": "hi", "max_tokens": 50, "stream": True}
        return AsgiRequest(self.app, PATH, json.dumps(body).encode(), max_messages)

    @property
    def asked(self) -> list[str | None]:
        """The adapter of each request that the engine was given."""
        return [request.adapter for request in self.engine.requests]

    @property
    def loaded(self) -> set[str]:
        return set(self.engine.adapters.reports)

    def num_leases(self, digest: str) -> int:
        return self.services.catalog.leases.count(digest)


@pytest.fixture
async def served(tokenizer: Tokenizer, tmp_path: Path) -> AsyncIterator[Served]:
    def script(request: GenerationRequest) -> Iterator[int]:
        for _ in range(100):
            known = engine.adapters.reports
            assert request.adapter is None or request.adapter in known, "it is there to the end"
            yield ord("x")

    engine = FakeEngine(script)
    services = make_services(
        tokenizer, engine, loader=FakeLoader(), adapter_root=str(tmp_path.resolve())
    )
    app = create_app(services)
    async with make_client(app) as client:
        yield Served(app, services, engine, client, tmp_path.resolve())
    await services.supervisor.stop()
    await services.adapters.close()


async def test_a_request_holds_its_version_to_its_end(served: Served) -> None:
    digest = await served.put("a", "one")
    served.engine.go.clear()
    asking = asyncio.create_task(served.ask("a"))
    await until(lambda: served.engine.running == 1)
    assert served.num_leases(digest) == 1
    served.engine.go.set()
    assert (await asking).status_code == 200
    assert served.num_leases(digest) == 0
    assert served.asked == [digest]


@pytest.mark.parametrize(
    "body",
    [{"max_tokens": 0}, {"stream_options": {}}, {"prompt": []}, {"logit_bias": {"9999": 1}}],
)
async def test_a_refused_request_holds_nothing(served: Served, body: dict[str, Any]) -> None:
    digest = await served.put("a", "one")
    assert (await served.ask("a", body=body)).status_code == 400
    assert served.num_leases(digest) == 0


async def test_a_stream_holds_its_version_to_its_last_byte(served: Served) -> None:
    digest = await served.put("a", "one")
    request = served.stream("a", max_messages=3)
    await until(lambda: request.num_chunks == 2)
    assert served.num_leases(digest) == 1
    request.leave()
    request.task.cancel()
    await asyncio.wait({request.task})
    assert served.num_leases(digest) == 0


async def test_a_client_that_leaves_gives_its_version_back(served: Served) -> None:
    digest = await served.put("a", "one")
    served.engine.go.clear()
    request = served.stream("a")
    await until(lambda: served.engine.running == 1)
    request.leave()
    await until(lambda: served.engine.running == 0)
    await until(lambda: served.num_leases(digest) == 0)


async def test_streams_in_flight_end_on_the_version_they_began_with(served: Served) -> None:
    old = await served.put("a", "one")
    first = served.stream("a")
    await until(lambda: first.num_chunks > 1)
    served.engine.go.clear()
    putting = asyncio.create_task(served.put("a", "two"))
    await until(lambda: served.num_leases(old) == 1)
    served.engine.go.set()
    new = await putting
    second = served.stream("a")
    await asyncio.gather(first.task, second.task)
    assert served.asked == [old, new]
    for request in (first, second):
        assert request.sent[0]["status"] == 200
        assert b"[DONE]" in b"".join(message.get("body", b"") for message in request.sent)
    await until(lambda: served.loaded == {new})


async def test_a_stream_outlives_its_name(served: Served) -> None:
    digest = await served.put("a", "one")
    stream = served.stream("a", max_messages=4)
    await until(lambda: stream.num_chunks == 3)
    removal = await served.services.adapters.delete("a", 0)
    assert (removal.done, removal.leases) == (False, 1)
    response = await served.ask("a")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert served.loaded == {digest}
    stream.task.cancel()
    await until(lambda: served.loaded == set())


async def test_no_stream_errs_or_mixes_versions_while_names_change(served: Served) -> None:
    digests = {content: await served.put("a", content) for content in ("one", "two")}

    async def stream() -> None:
        for _ in range(10):
            request = served.stream("a")
            await request.task
            assert request.sent[0]["status"] == 200
            text = b"".join(message.get("body", b"") for message in request.sent)
            assert text.count(b"data: ") == 51, "50 tokens and [DONE]"
            assert b"error" not in text

    async def change() -> None:
        while not all(task.done() for task in streams):
            for content in digests:
                await served.put("a", content)

    streams = [asyncio.create_task(stream()) for _ in range(4)]
    await asyncio.gather(change(), *streams)
    assert set(served.asked) == set(digests.values())
    await until(lambda: len(served.loaded) == 1)


# -- aliases -----------------------------------------------------------------------------------


@pytest.fixture
async def canary(served: Served) -> Served:
    """``canary`` is split evenly between two versions of ``a``."""
    for content in ("one", "two"):
        await served.put("a", content)
    split = [AliasTarget("a", 1, 50), AliasTarget("a", 2, 50)]
    await served.services.adapters.put_alias("canary", split)
    return served


def key_in(where: str, key: str) -> dict[str, Any]:
    if where == "header":
        return {"headers": {"x-branchline-request-key": key}, "body": {"user": "other"}}
    return {"body": {where: key}}


@pytest.mark.parametrize("where", ["header", "user", "prompt_cache_key"])
async def test_a_key_always_gets_one_version(canary: Served, where: str) -> None:
    by_key: dict[str, set[str | None]] = {}
    for number in range(24):
        key = f"k{number % 12}"
        response = await canary.ask("canary", **key_in(where, key))
        assert response.json()["model"] == "canary", "the name that the client used"
        by_key.setdefault(key, set()).add(canary.asked[-1])
    assert all(len(versions) == 1 for versions in by_key.values())
    assert len(set.union(*by_key.values())) == 2


async def test_without_a_key_the_same_body_gets_one_version(canary: Served) -> None:
    for prompt in range(12):
        for _ in range(2):
            await canary.ask("canary", body={"prompt": f"prompt {prompt}"})
    pairs = list(zip(canary.asked[::2], canary.asked[1::2], strict=True))
    assert all(one == other for one, other in pairs)
    assert len(set(pairs)) == 2


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_bad_key_is_a_400(canary: Served, key: str) -> None:
    response = await canary.ask("canary", **key_in("header", key))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-branchline-request-key"
    assert canary.asked == []


async def test_a_key_that_is_no_text_is_read_past(canary: Served) -> None:
    assert (await canary.ask("canary", body={"user": 7})).status_code == 200
    assert (await canary.ask(BASE, body={"user": "x"})).status_code == 200
