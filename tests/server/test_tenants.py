"""Whose request it is: from keys and the gateway's headers to the engine and the counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from asgi_client import until
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families

from branchline.server.access import Access, Tenant
from branchline.server.app import create_app
from branchline.server.config import ServeConfig
from branchline.server.tenant_meter import TenantMeter
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, access, make_client, make_services

SECRET, TENANT, WEIGHT = (
    "x-branchline-fleet-secret",
    "x-branchline-tenant",
    "x-branchline-tenant-weight",
)
Headers = list[tuple[str, str]]


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


async def ask(tokenizer: Tokenizer, who: Access, headers: Headers) -> tuple[httpx.Response, Any]:
    """The answer to a text completion, and the engine's request if there was one."""
    engine = FakeEngine()
    async with make_client(create_app(make_services(tokenizer, engine, who))) as client:
        body = {"model": BASE, "prompt": "hi"}
        response = await client.post("/v1/completions", json=body, headers=headers)
    return response, engine.requests[0] if engine.requests else None


WHO = access(
    tenant=("acme=k1", "acme=k2", "beta=k3"),
    tenant_weight=("beta=0.5", "acme=2"),
    api_key=("k4", "oné"),
    fleet_secret="s",
)


@pytest.mark.parametrize(
    ("headers", "tenant", "weight"),
    [
        ([bearer("k1")], "acme", 2.0),
        ([bearer("k2")], "acme", 2.0),
        ([bearer("k3")], "beta", 0.5),
        ([bearer("k4")], "key-1", 1.0),
        ([(b"authorization", "Bearer oné".encode())], "key-2", 1.0),
        # Without the secret, or with a wrong one, the gateway's headers are air.
        ([bearer("k1"), (TENANT, "beta"), (WEIGHT, "9")], "acme", 2.0),
        ([bearer("k1"), (SECRET, "wrong"), (TENANT, "beta"), (WEIGHT, "x")], "acme", 2.0),
        ([bearer("k1"), (SECRET, "s"), (SECRET, "s"), (TENANT, "beta")], "acme", 2.0),
        # With it they hold, key or no key.
        ([(SECRET, "s"), (TENANT, "new one"), (WEIGHT, "0.25")], "new one", 0.25),
        ([(SECRET, "s"), (TENANT, "new one")], "new one", 1.0),
        ([(SECRET, "s"), (TENANT, "beta")], "beta", 0.5),
        ([(SECRET, "s"), (TENANT, "beta"), (WEIGHT, "1e3")], "beta", 1000.0),
        ([(SECRET, "s")], "default", 1.0),
        ([(SECRET, "s"), bearer("k1")], "acme", 2.0),
        ([(SECRET, "s"), bearer("wrong"), (TENANT, "t")], "t", 1.0),
        ([(SECRET, "s"), (TENANT, "x" * 128)], "x" * 128, 1.0),
    ],
)
async def test_the_engine_hears_whose_request_it_is(
    tokenizer: Tokenizer, headers: Headers, tenant: str, weight: float
) -> None:
    response, request = await ask(tokenizer, WHO, headers)
    assert response.status_code == 200, response.text
    assert (request.tenant, request.weight) == (tenant, weight)


@pytest.mark.parametrize(
    ("headers", "header"),
    [
        *(([(SECRET, "s"), (TENANT, name)], TENANT) for name in ("", "x" * 129, "a\tb", "é")),
        *(
            ([(SECRET, "s"), (WEIGHT, weight)], WEIGHT)
            for weight in ("", "x", "0", "-1", "nan", "inf", "0.0009", "1000.1", "1,5")
        ),
        ([(SECRET, "s"), (TENANT, "a"), (TENANT, "b")], TENANT),
        ([(SECRET, "s"), (WEIGHT, "1"), (WEIGHT, "1")], WEIGHT),
    ],
)
async def test_bad_fleet_headers_are_named(
    tokenizer: Tokenizer, errors_of: Any, headers: Headers, header: str
) -> None:
    encoded: Any = [(name, value.encode("latin-1")) for name, value in headers]
    response, request = await ask(tokenizer, WHO, encoded)
    assert errors_of(response, 400)["param"] == header
    assert request is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("s")],
        [bearer("")],
        [(SECRET, "wrong")],
        [(SECRET, "")],
        [(SECRET, "k1")],
        [(TENANT, "acme")],
        [(SECRET, "s"), (SECRET, "s")],
    ],
)
async def test_nobody_else_comes_in(tokenizer: Tokenizer, errors_of: Any, headers: Headers) -> None:
    response, request = await ask(tokenizer, WHO, headers)
    assert errors_of(response, 401)["code"] == "invalid_api_key"
    assert request is None


async def test_without_keys_or_a_secret_everyone_is_default(tokenizer: Tokenizer) -> None:
    headers = [bearer("any"), (SECRET, ""), (TENANT, "acme"), (WEIGHT, "9")]
    response, request = await ask(tokenizer, Access(), headers)
    assert response.status_code == 200
    assert (request.tenant, request.weight) == ("default", 1.0)


@pytest.mark.parametrize("priority", [-(2**31), -1, 0, 7, 2**31 - 1])
async def test_priority_reaches_the_engine(harness: Harness, priority: int) -> None:
    text = await harness.complete(priority=priority)
    chat = await harness.chat(priority=priority)
    assert (text.status_code, chat.status_code) == (200, 200)
    assert [request.priority for request in harness.engine.requests] == [priority] * 2


async def test_a_cache_salt_reaches_the_engine(harness: Harness) -> None:
    await harness.complete(["a", "b"], n=2, cache_salt="é" * 256)
    await harness.chat(cache_salt="x")
    await harness.chat(cache_salt=None, priority=None)
    salts = [request.cache_salt for request in harness.engine.requests]
    assert salts == ["é" * 256] * 4 + ["x", None]
    assert harness.engine.requests[-1].priority == 0


def series(text: str, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values by its labels but the model's name, in the order of their names."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
                found[tuple(labels.values())] = sample.value
    return found


async def test_counts_by_tenant(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    engine.num_cached = lambda request: 1
    app = create_app(make_services(tokenizer, engine, access(tenant=("a=k1", "b=k2", "c=k3"))))
    async with make_client(app) as client:

        async def post(key: str, **fields: Any) -> int:
            body = {"model": BASE, "prompt": "hi", "max_tokens": 4, **fields}
            headers = [bearer(key)]
            return (await client.post("/v1/completions", json=body, headers=headers)).status_code

        assert [await post("k1"), await post("k1", n=2), await post("k2")] == [200] * 3
        assert [await post("k2", top_p=9), await post("k2", model="none")] == [400, 404]
        assert await post("wrong") == 401
        text = (await client.get("/metrics")).text
    tenants = "branchline:tenant_"
    assert series(text, f"{tenants}prompt_tokens_total") == {("a",): 6, ("b",): 2, ("c",): 0}
    assert series(text, f"{tenants}cached_tokens_total") == {("a",): 3, ("b",): 1, ("c",): 0}
    assert series(text, f"{tenants}generation_tokens_total") == {("a",): 12, ("b",): 4, ("c",): 0}
    assert series(text, f"{tenants}requests_total") == {
        ("200", "a"): 2,
        ("200", "b"): 1,
        ("400", "b"): 1,
        ("404", "b"): 1,
    }


async def test_in_flight_by_tenant(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    engine.go.clear()
    services = make_services(tokenizer, engine, access(tenant=("a=k1", "b=k2")))
    async with make_client(create_app(services)) as client:
        body = {"model": BASE, "prompt": "hi", "n": 3}
        asking = [
            asyncio.create_task(client.post("/v1/completions", json=body, headers=[bearer("k1")]))
            for _ in range(2)
        ]
        await until(lambda: engine.running == 6)
        name = "branchline:tenant_requests_in_flight"
        text = (await client.get("/metrics")).text
        assert series(text, name) == {("a",): 2, ("b",): 0}
        engine.go.set()
        await asyncio.gather(*asking)
        assert set(series((await client.get("/metrics")).text, name).values()) == {0}


def collected(meter: TenantMeter, name: str) -> dict[str, float]:
    families: Iterable[Any] = meter.collect()
    [family] = [family for family in families if family.name == name]
    return {sample.labels["tenant"]: sample.value for sample in family.samples}


def test_tenants_past_the_limit_are_one() -> None:
    meter = TenantMeter("m", [Tenant("known")], limit=3)
    for index in range(10):
        meter.counts_of(f"t{index}").num_prompt_tokens += 1
    meter.counts_of("t0").num_prompt_tokens += 1
    values = collected(meter, "branchline:tenant_prompt_tokens")
    assert values == {"known": 0, "t0": 2, "t1": 1, "other": 8}
    assert list(meter.tenants) == ["known", "t0", "t1"]


def test_a_tenant_called_other_is_no_second_series() -> None:
    meter = TenantMeter("m", [Tenant("other")], limit=1)
    meter.counts_of("other").num_prompt_tokens += 2
    assert collected(meter, "branchline:tenant_prompt_tokens") == {"other": 2}
    meter.counts_of("x").num_prompt_tokens += 3
    assert collected(meter, "branchline:tenant_prompt_tokens") == {"other": 5}


def test_thousands_of_names_make_a_thousand_series() -> None:
    meter = TenantMeter("m", [])
    for index in range(5000):
        meter.counts_of(f"t{index}").num_requests[200] += 1
    assert len(collected(meter, "branchline:tenant_requests")) == 1001


def test_the_config_says_nothing_of_secrets(tokenizer: Tokenizer) -> None:
    config: ServeConfig = make_services(tokenizer, FakeEngine(), WHO).config
    assert all(secret not in repr(config) for secret in ("k1", "k4", "'s'"))
