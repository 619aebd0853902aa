"""The admin API: who gets in, what it tells, pins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from asgi_client import until
from fake_engine import FakeEngine

from branchline.engine.cache_types import NamespaceReport, PrefixReport
from branchline.server.access import Access
from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, access, make_client, make_services

WHO = access(admin_key=("a1", "a2"), tenant=("acme=k1", "beta=k2"), tenant_weight=("beta=2",))
ADMIN = {"authorization": "Bearer a1"}
LOCAL = "http://127.0.0.1:8000"
PATHS = ("/admin/cache", "/admin/tenants", "/admin/cache/pins", "/admin/nothing", "/admin")
PREFIX = "x" * 40
PIN = {"model": BASE, "prompt": PREFIX, "tenant": "acme", "ttl_seconds": 60}


@asynccontextmanager
async def admin(
    tokenizer: Tokenizer,
    engine: FakeEngine | None = None,
    who: Access = WHO,
    base_url: str = LOCAL,
    **options: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends the admin key where ``who`` has one."""
    app = create_app(make_services(tokenizer, engine or FakeEngine(), who, **options))
    async with make_client(app, base_url) as client:
        if who.admin_keys:
            client.headers.update(ADMIN)
        yield client


async def test_keys_open_their_own_doors_only(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with admin(tokenizer) as client:
        for key, status in (("a1", 200), ("a2", 200), ("k1", 401), ("", 401), ("a", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/admin/cache", headers=headers)).status_code == status, key
        for path in PATHS:
            refused = await client.get(path, headers={"authorization": "Bearer k1"})
            assert errors_of(refused, 401)["code"] == "invalid_admin_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/admin/cache/reset", "/admin/cache/pins"):
            refused = await client.post(path, headers={"authorization": "Bearer k1"})
            assert errors_of(refused, 401)["code"] == "invalid_admin_key"
        models = await client.get("/v1/models")
        assert errors_of(models, 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("who", "host"),
    [
        (access(api_key=("k1",)), "127.0.0.1"),
        (access(tenant=("a=k1",)), "127.0.0.1"),
        (access(fleet_secret="s"), "127.0.0.1"),
        (Access(), "0.0.0.0"),
        (Access(), "::"),
        (Access(), "10.0.0.1"),
        (Access(), "example.org"),
    ],
)
async def test_without_an_admin_key_it_is_off(
    tokenizer: Tokenizer, errors_of: Any, who: Access, host: str
) -> None:
    async with admin(tokenizer, who=who, host=host) as client:
        for path in PATHS:
            error = errors_of(await client.get(path, headers={"authorization": "Bearer k1"}), 403)
            assert error["code"] == "admin_disabled"
            assert "--admin-key" in error["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.1"])
@pytest.mark.parametrize("base_url", [LOCAL, "http://localhost", "http://[::1]:80"])
async def test_a_keyless_server_on_loopback_serves_its_own_machine(
    tokenizer: Tokenizer, host: str, base_url: str
) -> None:
    async with admin(tokenizer, who=Access(), host=host, base_url=base_url) as client:
        assert (await client.get("/admin/cache")).status_code == 200
        assert (await client.post("/admin/cache/reset")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
async def test_but_no_web_page_and_no_proxy(
    tokenizer: Tokenizer, errors_of: Any, headers: dict[str, str]
) -> None:
    async with admin(tokenizer, who=Access()) as client:
        response = await client.post("/admin/cache/reset", headers=headers)
        assert errors_of(response, 403)["code"] == "admin_disabled"
    async with admin(tokenizer) as client:
        with_key = await client.post("/admin/cache/reset", headers=headers)
        assert with_key.status_code == 200, "a key says enough"


def with_contents(engine: FakeEngine) -> FakeEngine:
    engine.cache.namespaces = [
        NamespaceReport(
            adapter=adapter,
            tenant="acme",
            salted=False,
            num_blocks=5,
            num_host_blocks=1,
            num_query_tokens=queries,
            num_hit_tokens=30,
        )
        for adapter, queries in ((None, 40), ("digest-a", 0))
    ]
    engine.cache.prefixes = [
        PrefixReport(
            num_tokens=64,
            num_hits=3,
            in_use=False,
            tier="device",
            first_token_ids=list(b"a secret of acme" * 10),
            adapter="digest-a",
            tenant="acme",
            salted=salted,
        )
        for salted in (False, True)
    ]
    return engine


async def test_the_cache(tokenizer: Tokenizer) -> None:
    async with admin(tokenizer, with_contents(FakeEngine())) as client:
        report = (await client.get("/admin/cache")).json()
        assert report["block_size"] == 16
        assert (report["num_blocks"], report["num_free"], report["num_restored"]) == (100, 60, 3)
        assert report["hit_rate"] == 0.75
        base, adapter = report["namespaces"]
        assert (base["adapter"], base["models"], base["hit_rate"]) == (None, [BASE], 0.75)
        assert (adapter["adapter"], adapter["models"]) == ("digest-a", [ADAPTER])
        assert adapter["hit_rate"] is None, "nobody asked yet"
        assert [prefix["num_tokens"] for prefix in report["prefixes"]] == [64, 64]
        assert report["prefixes"][0]["models"] == [ADAPTER]
        for number in (0, 1, 2):
            found = await client.get(f"/admin/cache?max_prefixes={number}")
            assert len(found.json()["prefixes"]) == number


async def test_prompts_are_shown_only_when_asked_for(tokenizer: Tokenizer) -> None:
    async with admin(tokenizer, with_contents(FakeEngine())) as client:
        plain = await client.get("/admin/cache")
        assert "secret" not in plain.text
        assert "token_ids" not in plain.text
        shown = (await client.get("/admin/cache?preview=true")).json()["prefixes"]
        assert shown[0]["preview"] == ("a secret of acme" * 10)[:80]
        assert shown[1]["preview"] is None, "a salted prefix is shown to nobody"
        assert all("first_token_ids" not in prefix for prefix in shown)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("max_prefixes=-1", "max_prefixes"),
        ("max_prefixes=1001", "max_prefixes"),
        ("max_prefixes=x", "max_prefixes"),
        ("preview=perhaps", "preview"),
    ],
)
async def test_bad_queries_are_named(
    tokenizer: Tokenizer, errors_of: Any, query: str, field: str
) -> None:
    async with admin(tokenizer) as client:
        assert errors_of(await client.get(f"/admin/cache?{query}"), 400)["param"] == field


async def complete(client: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    body = {"model": BASE, "prompt": PREFIX, "max_tokens": 4, **fields}
    headers = {"authorization": f"Bearer {key}"}
    return await client.post("/v1/completions", json=body, headers=headers)


async def test_reset(tokenizer: Tokenizer) -> None:
    async with admin(tokenizer) as client:
        await complete(client, "k1")
        assert (await client.get("/admin/cache")).json()["num_cached"] == 2
        removed = await client.post("/admin/cache/reset")
        assert removed.json() == {"blocks_removed": 2}
        assert (await client.get("/admin/cache")).json()["num_cached"] == 0


async def test_tenants(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        await complete(client, "k1")
        await complete(client, "k1", n=2)
        await complete(client, "k1", top_p=5)
        engine.go.clear()
        asking = asyncio.create_task(complete(client, "k2"))
        await until(lambda: engine.running == 1)
        acme, beta = (await client.get("/admin/tenants")).json()["tenants"]
        engine.go.set()
        await asking
    assert acme == {
        "name": "acme",
        "weight": 1.0,
        "configured": True,
        "num_in_flight": 0,
        "num_requests": {"200": 2, "400": 1},
        "num_prompt_tokens": 120,
        "num_cached_tokens": 9,
        "num_generation_tokens": 12,
    }
    assert (beta["name"], beta["weight"], beta["num_in_flight"]) == ("beta", 2.0, 1)


async def test_tenants_of_the_gateway(tokenizer: Tokenizer) -> None:
    who = access(admin_key=("a1",), fleet_secret="s")
    async with admin(tokenizer, who=who) as client:
        for weight in ("4", "8"):
            headers = {
                "x-branchline-fleet-secret": "s",
                "x-branchline-tenant": "far",
                "x-branchline-tenant-weight": weight,
            }
            body = {"model": BASE, "prompt": "x"}
            await client.post("/v1/completions", json=body, headers=headers)
        rows = (await client.get("/admin/tenants")).json()["tenants"]
    far = next(row for row in rows if row["name"] == "far")
    assert (far["weight"], far["configured"], far["num_prompt_tokens"]) == (8.0, False, 2)


async def test_an_engine_that_is_gone_or_busy_is_a_503(
    tokenizer: Tokenizer, errors_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:

        async def never(*_: object) -> None:
            raise TimeoutError

        with monkeypatch.context() as patch:
            patch.setattr(FakeEngine, "report_cache", never)
            error = errors_of(await client.get("/admin/cache"), 503)
            assert error["code"] == "engine_busy"
        engine.go.clear()
        asking = asyncio.create_task(client.get("/admin/cache"))
        await asyncio.sleep(0)
        engine.die()
        assert errors_of(await asking, 503)["code"] == "engine_dead"
        for response in (
            await client.get("/admin/cache"),
            await client.post("/admin/cache/reset"),
            await client.post("/admin/cache/pins", json=PIN),
            await client.delete("/admin/cache/pins/x"),
        ):
            assert errors_of(response, 503)["code"] == "engine_dead"


async def test_the_description_has_the_admin_api(tokenizer: Tokenizer) -> None:
    async with admin(tokenizer) as client:
        schema = (await client.get("/openapi.json")).json()
    assert "PinRequest" in schema["components"]["schemas"]
    pins = schema["paths"]["/admin/cache/pins"]
    assert set(pins) == {"get", "post"}
    assert "201" in pins["post"]["responses"]
