"""Pins through the admin API: what is pinned, for whom, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from branchline.server.access import Access
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, TEMPLATED, access
from .test_admin import PREFIX, WHO, admin, complete


async def pin(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": BASE, "ttl_seconds": 60, "tenant": "acme", **fields}
    return await client.post("/admin/cache/pins", json=body)


async def test_a_pin_is_computed_first_and_held(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        response = await pin(client, prompt=PREFIX, model=ADAPTER, tenant="beta", cache_salt="s")
        assert response.status_code == 201, response.text
        made = response.json()
        assert made == {
            "pin_id": "pin-1",
            "num_tokens": 32,
            "num_blocks": 2,
            "expires_in": 60.0,
            "adapter": "digest-a",
            "tenant": "beta",
            "salted": True,
            "cache_group": None,
            "models": [ADAPTER],
        }
        [warm], [target] = engine.requests, engine.cache.targets
        assert (warm.params.max_tokens, warm.params.temperature) == (1, 0)
        assert (warm.tenant, warm.weight, warm.cache_salt) == ("beta", 2.0, "s")
        assert (warm.adapter, warm.prompt_token_ids) == ("digest-a", list(PREFIX.encode()))
        assert target.prompt_token_ids == warm.prompt_token_ids
        assert (target.tenant, target.cache_salt) == ("beta", "s")
        assert (await client.get("/admin/cache/pins")).json() == {"pins": [made]}
        assert (await client.get("/admin/cache")).json()["pins"] == [made]
        removed = await client.delete("/admin/cache/pins/pin-1")
        assert removed.json() == {"pin_id": "pin-1", "removed": True}
        assert (await client.get("/admin/cache/pins")).json() == {"pins": []}


async def test_a_groups_prefix_is_pinned_for_the_group(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        response = await pin(client, prompt=PREFIX, tenant=None, cache_group="pool")
        assert response.status_code == 201, response.text
        [warm], [target] = engine.requests, engine.cache.targets
        assert (warm.cache_group, target.cache_group, target.tenant) == ("pool", "pool", None)
        for group, tenant in (("pool", "acme"), ("a\tb", None), ("", None)):
            refused = await pin(client, prompt=PREFIX, tenant=tenant, cache_group=group)
            assert errors_of(refused, 400)["param"] == "cache_group"


async def test_a_pin_that_is_gone_is_a_404(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with admin(tokenizer) as client:
        error = errors_of(await client.delete("/admin/cache/pins/" + "x" * 500), 404)
        assert error["code"] == "pin_not_found"
        assert len(error["message"]) < 200


async def test_a_chat_is_pinned_without_the_opening_of_an_answer(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief. " * 4}]
    for model, expected in (
        (BASE, f"<|im_start|>system\n{messages[0]['content']}<|im_end|>\n"),
        (TEMPLATED, f"[system] {messages[0]['content']}\n"),
    ):
        engine = FakeEngine()
        async with admin(tokenizer, engine) as client:
            assert (await pin(client, messages=messages, model=model)).status_code == 201
            assert tokenizer.decode(engine.cache.targets[0].prompt_token_ids) == expected


async def test_token_ids_are_pinned_as_they_are(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        assert (await pin(client, prompt_token_ids=[7] * 16)).status_code == 201
    assert engine.cache.targets[0].prompt_token_ids == [7] * 16


async def test_what_is_not_cached_can_not_be_pinned_cold(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        ids = list(PREFIX.encode())
        error = errors_of(await pin(client, prompt_token_ids=ids, warm=False), 400)
        assert error["param"] == "prompt_token_ids", "in the body's words, not the engine's"
        assert "not cached" in error["message"]
        assert engine.requests == []
        await complete(client, "k1")
        assert (await pin(client, prompt_token_ids=ids, warm=False)).status_code == 201


@pytest.mark.parametrize(
    ("who", "options", "given", "target"),
    [
        (WHO, {}, None, "refused"),
        (WHO, {}, "beta", "beta"),
        (access(admin_key=("a1",), tenant=("acme=k1",), fleet_secret="s"), {}, "far", "far"),
        (WHO, {"isolate_tenants": False}, None, None),
        (WHO, {"isolate_tenants": False}, "acme", None),
        (access(admin_key=("a1",)), {}, None, "default"),
        (access(admin_key=("a1",), fleet_secret="s"), {}, None, "refused"),
    ],
)
async def test_whose_prefix_it_is(
    tokenizer: Tokenizer, who: Access, options: dict[str, Any], given: str | None, target: Any
) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine, who, engine_options=options) as client:
        response = await pin(client, prompt=PREFIX, tenant=given)
    if target == "refused":
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "tenant"
        assert "--share-prefixes" in response.json()["error"]["message"]
    else:
        assert response.status_code == 201, response.text
        assert engine.cache.targets[0].tenant == target


@pytest.mark.parametrize(
    ("who", "known"),
    [
        (access(admin_key=("a1",), tenant=("acme=k1", "beta=k2")), "acme, beta"),
        (access(admin_key=("a1",)), "default"),
    ],
)
async def test_a_tenant_that_can_not_ask_has_no_pins(
    tokenizer: Tokenizer, errors_of: Any, who: Access, known: str
) -> None:
    """Only a gateway names tenants that are not configured."""
    engine = FakeEngine()
    async with admin(tokenizer, engine, who) as client:
        error = errors_of(await pin(client, prompt=PREFIX, tenant="acmee"), 400)
    assert error["param"] == "tenant"
    assert error["message"].endswith(f"no tenant 'acmee'; there are: {known}")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x" * 15}, "prompt"),
        ({"prompt_token_ids": [1] * 15}, "prompt_token_ids"),
        ({"prompt": "x" * 512}, "prompt"),
        ({"prompt_token_ids": [1] * 512}, "prompt_token_ids"),
        ({"prompt_token_ids": [260] * 20}, "prompt_token_ids"),
        ({"prompt_token_ids": [-1] * 20}, "prompt_token_ids"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [PREFIX]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({}, "prompt"),
        ({"prompt": PREFIX, "prompt_token_ids": [1] * 20}, "prompt_token_ids"),
        ({"prompt": PREFIX, "unknown": 1}, "unknown"),
        ({"prompt": PREFIX, "model": "nobody"}, "model"),
        ({"prompt": PREFIX, "model": None}, "model"),
        *(
            ({"prompt": PREFIX, "ttl_seconds": ttl}, "ttl_seconds")
            for ttl in (None, 0, 0.5, 604801, "60", True, 10**400)
        ),
        *(({"prompt": PREFIX, "tenant": t}, "tenant") for t in ("", "é", "x" * 129, 1)),
        *(({"prompt": PREFIX, "cache_salt": s}, "cache_salt") for s in ("", "x" * 257, 1)),
        ({"prompt": PREFIX, "warm": "yes"}, "warm"),
    ],
)
async def test_bad_pins_are_named(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    async with admin(tokenizer, engine) as client:
        response = await pin(client, **fields)
    assert response.status_code == (404 if fields.get("model") == "nobody" else 400)
    error = response.json()["error"]
    assert (error["param"] or "").startswith(param) or 10**400 in fields.values(), error
    if error["code"] == "prefix_too_short":
        assert "16 tokens" in error["message"]
    assert engine.requests == []


async def test_short_prefixes_say_the_block_size(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with admin(tokenizer) as client:
        error = errors_of(await pin(client, prompt="x" * 15), 400)
        assert error["code"] == "prefix_too_short"
        assert "a block is 16 tokens" in error["message"]
        assert (await pin(client, prompt="x" * 16)).status_code == 201


async def test_a_pin_needs_a_cache(tokenizer: Tokenizer, errors_of: Any) -> None:
    options = {"enable_prefix_caching": False}
    async with admin(tokenizer, engine_options=options) as client:
        assert errors_of(await pin(client, prompt=PREFIX), 409)["code"] == "prefix_cache_off"


async def test_a_pin_waits_its_turn_and_hears_of_a_full_queue(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    engine = FakeEngine()
    engine.error, engine.error_kind, engine.retry_after = "full", "overloaded", 3.0
    async with admin(tokenizer, engine) as client:
        response = await pin(client, prompt=PREFIX)
        assert errors_of(response, 429)["code"] == "queue_full"
        assert response.headers["retry-after"] == "3"
        assert engine.cache.targets == []
